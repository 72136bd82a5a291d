"""Finished work that was damaged afterwards: never up to date, named with its remedy, and mended by it."""

import json
import os
import shutil

import pytest

from deepen.errors import DamageError
from deepen.formats.manifest import MANIFEST
from deepen.formats.unchanged import all_faults
from deepen.recipe.reading import load
from deepen.workflow.run import RunOptions, run_pipeline


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run, whose files may be replaced and not written into."""
    (tmp_path / "runs").mkdir()
    made = shutil.copytree(finished_run, tmp_path / "runs" / "tiny", copy_function=os.link)
    (made / "lock").unlink()
    return made


def change(path, how):
    data = path.read_bytes()
    path.unlink()  # the file itself is the finished run's
    path.write_bytes(how(data))


def flipped(data):
    return data[:-2] + bytes([data[-2] ^ 4]) + data[-1:]


def bring(run, last="export", *sets, name=None, **options):
    loaded = load(run, None, ["machine.workers=1", *sets])
    place = run if name is None else run.with_name(name)
    return run_pipeline(loaded.recipe, loaded.machine, place, RunOptions(last=last, offline=True, **options))


def contents(run, stage):
    """All files of a stage but those that hold times."""
    skipped = (MANIFEST, "metrics.jsonl", "times.jsonl", ".hashes.json")
    files = (path for path in (run / stage).rglob("*") if path.is_file() and path.name not in skipped)
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("ingest/documents/code-00000.parquet", flipped),
        ("mix/packs/code.rows.npy", flipped),
        ("tokenize/tokenizer/tokenizer.json", flipped),
        ("baseline/held_out.parquet", lambda data: data[:-1]),
        ("evaluate/scores.jsonl", flipped),
        ("select/choice.json", flipped),
        ("mix/manifest.json", lambda data: data[: len(data) // 2]),
    ],
)
def test_a_damaged_stage_is_named_and_mended_by_the_command_that_is_named(run, file, how, capfd):
    stage, before = file.partition("/")[0], contents(run, file.partition("/")[0])
    change(run / file, how)
    with pytest.raises(DamageError, match=file) as caught:
        bring(run)
    assert f"`deepen {stage} {run} --redo`" in caught.value.hint
    assert f"{stage} is up to date" not in capfd.readouterr().err
    made = bring(run, stage, redo=True)
    assert contents(run, stage) == before and not all_faults(made[stage])
    bring(run)
    assert capfd.readouterr().err.count("is up to date") >= 9


def test_a_damaged_shard_is_made_anew_alone(run, capfd):
    shards = run / "tokenize" / "shards"
    before, intact = (shards / "code.bin").read_bytes(), (shards / "prose.bin").stat().st_ino
    change(shards / "code.bin", flipped)
    bring(run, "tokenize", redo=True)
    assert (shards / "code.bin").read_bytes() == before
    assert (shards / "prose.bin").stat().st_ino == intact  # taken over


@pytest.mark.parametrize("which", [0, -1])
def test_a_damaged_checkpoint_does_not_train_everything_again(run, which, capfd):
    checkpoints = sorted((run / "train" / "checkpoints").iterdir())
    before = contents(run, "train")
    change(checkpoints[which] / "state.json", flipped)
    with pytest.raises(DamageError, match=r"state\.json") as caught:
        bring(run)
    assert f"`deepen train {run} --redo`" in caught.value.hint
    made = bring(run, "train", redo=True)
    assert "train: starting" not in capfd.readouterr().err
    assert not all_faults(made["train"])
    after = contents(run, "train")
    if which == -1:  # the last one is trained again, from the one before it
        assert after == before
    else:  # nothing needs it: it is left out
        assert {name for name in before if name not in after} == {
            name for name in before if f"/{checkpoints[which].name}/" in name
        }
    bring(run)


def test_damage_in_a_neighbouring_run_blocks_nobody(run, capfd):
    (run / "mix" / MANIFEST).unlink()
    (run / "mix" / MANIFEST).write_bytes(b"{")
    change(run / "curate" / "documents" / "code-00000.parquet", flipped)
    made = bring(run, "mix", name="other")
    said = capfd.readouterr().err
    assert "ingest: the same work is finished in" in said
    assert "curate: starting" in said and "passed over" in said and "mix: starting" in said
    assert made["curate"].path == run.with_name("other") / "curate"


def test_damage_of_what_is_referred_to_is_mended_where_it_lies(run):
    bring(run, "mix", name="other")
    change(run / "curate" / "documents" / "code-00000.parquet", flipped)
    for redo in (False, True):
        with pytest.raises(DamageError) as caught:
            bring(run, "mix", name="other", redo=redo)
        assert "tiny --redo`" in caught.value.hint
    bring(run, "curate", redo=True)
    bring(run, "mix", name="other")
    assert "location" in json.loads((run.with_name("other") / "curate" / MANIFEST).read_text())


def test_a_removal_that_was_killed_is_swept_and_its_stage_is_not_finished(run, capfd, monkeypatch):
    from deepen.formats import replaced
    from deepen.runs.lineage import remove

    def killed(path, **_):
        if path.exists():
            (path / "order" / "000.u64").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(replaced.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(run / "mix")
    monkeypatch.undo()
    assert not (run / "mix").exists() and (run / ".mix.removing").is_dir()
    shutil.copytree(run, run.with_name("other"))  # and it is nobody's neighbour
    bring(run, "mix")
    assert "mix: starting" in capfd.readouterr().err
    assert not (run / ".mix.removing").exists() and not all_faults(bring(run, "mix")["mix"])


def test_what_is_removed_takes_its_half_made_successor_along(run):
    from deepen.runs.lineage import remove

    shutil.copytree(run / "select", run / "select.redo")
    (run / "mix").rename(run / "mix.old")  # a swap that was killed between its renames
    remove(run / "select")
    remove(run / "mix")
    assert not [path.name for path in run.iterdir() if path.name.startswith(("select", "mix", ".select", ".mix"))]
