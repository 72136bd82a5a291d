"""What a stage is about to read is as its manifest says, or the stage does not begin (or goes on) with it."""

import json
import os
import shutil

import pytest

from deepen.errors import DamageError
from deepen.formats.manifest import MANIFEST, UNFINISHED
from deepen.recipe.reading import load
from deepen.workflow.run import RunOptions, run_pipeline
from deepen.workflow.stages import STAGES


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run, whose files may be replaced and not written into."""
    (tmp_path / "runs").mkdir()
    made = shutil.copytree(finished_run, tmp_path / "runs" / "tiny", copy_function=os.link)
    (made / "lock").unlink()
    return made


def only(run, last):
    """Leave the stages up to ``last``."""
    for name in list(STAGES)[list(STAGES).index(last) + 1 :]:
        shutil.rmtree(run / name)


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.unlink()  # the file itself is the finished run's
    path.write_bytes(data)


def bring(run, last, **options):
    loaded = load(run, None, ["machine.workers=1"])
    return run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(last=last, offline=True, **options))


def without_tables(run):
    """Make of a tokenize stage what version 0.1 wrote: shards without tables of their blocks."""
    manifest = json.loads((run / "tokenize" / MANIFEST).read_text())
    manifest["files"] = [entry for entry in manifest["files"] if not entry["path"].endswith(".blocks")]
    del manifest["digest"]
    (run / "tokenize" / MANIFEST).unlink()
    (run / "tokenize" / MANIFEST).write_text(json.dumps(manifest))
    for path in (run / "tokenize" / "shards").glob("*.blocks"):
        path.unlink()


@pytest.mark.parametrize("file", ["mix/order/000.u64", "tokenize/shards/code.bin", "mix/packs/prose.segments.npy"])
def test_training_refuses_what_another_byte_would_change(run, file):
    only(run, "baseline")
    flip(run / file)
    with pytest.raises(DamageError, match=file.rpartition("/")[2]) as caught:
        bring(run, "train")
    assert f"deepen {file.partition('/')[0]} {run} --redo" in caught.value.hint
    assert not (run / "train" / MANIFEST).exists()


def test_shards_without_tables_are_hashed_once_before_training(run, monkeypatch):
    from deepen.formats.files import hashes

    only(run, "baseline")
    without_tables(run)
    for path in (run / "tokenize" / "shards").glob("*.bin"):
        os.utime(path, (1_000_000_000, 1_000_000_000))  # long settled, as in a run of the version before
    read, whole = [], hashes.hash_file
    monkeypatch.setattr(hashes, "hash_file", lambda path: read.append(path.name) or whole(path))
    bring(run, "train")
    assert sorted(name for name in read if name.endswith(".bin")) == ["code.bin", "prose.bin"]
    read.clear()
    (run / "train" / MANIFEST).rename(run / "train" / UNFINISHED)  # it is started again
    bring(run, "train")
    assert not [name for name in read if name.endswith(".bin")]


def test_a_damaged_shard_without_a_table_is_named(run):
    only(run, "baseline")
    without_tables(run)
    flip(run / "tokenize/shards/prose.bin", 11)
    with pytest.raises(DamageError, match=r"prose\.bin"):
        bring(run, "train")
