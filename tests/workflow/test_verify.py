"""`deepen verify` names what is damaged and the smallest thing that mends it, and that does mend it."""

import os
import shutil

import pytest

from deepen.board.report import write_report
from deepen.recipe.reading import load
from deepen.runs.verify import verify
from deepen.workflow.run import RunOptions, run_pipeline


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run with its report, whose files may be replaced and not written into."""
    (tmp_path / "runs").mkdir()
    made = shutil.copytree(finished_run, tmp_path / "runs" / "tiny", copy_function=os.link)
    (made / "lock").unlink()
    write_report(made)
    assert verify(made).damages == verify(made).remedies == []
    return made


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # the file itself is the finished run's
    path.write_bytes(data)


def follow(run, remedy):
    """Do what the remedy says."""
    verb, place, *how = remedy.split("`")[1].split()[1:]
    assert place == str(run)
    if verb == "report":
        write_report(run)
        return
    loaded = load(run, None, ["machine.workers=1"])
    run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(last=verb, redo=how == ["--redo"], offline=True))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("tokenize/shards/code.bin", ": only code is encoded again"),
        ("mix/order/000.u64", "makes what is damaged anew"),
        ("train/checkpoints/LAST/model.safetensors", "training goes on from step-"),
        ("train/checkpoints/FIRST/model.safetensors", "nothing is trained again"),
        ("report.html", "writes the report anew"),
    ],
)
def test_the_smallest_remedy_is_named_and_mends(run, file, told):
    names = sorted(path.name for path in (run / "train" / "checkpoints").iterdir())
    file = file.replace("LAST", names[-1]).replace("FIRST", names[0])
    flip(run / file)
    found = verify(run)
    assert len(found.damages) == len(found.remedies) == 1
    assert file in found.damages[0] and told in found.remedies[0]
    follow(run, found.remedies[0])
    assert verify(run).damages == []


def test_a_damaged_manifest_hides_no_other_damage(run):
    (run / "curate" / "manifest.json").unlink()
    (run / "curate" / "manifest.json").write_bytes(b"{")
    flip(run / "select" / "choice.json")
    found = verify(run)
    assert ["curate" in found.damages[0], "choice.json" in found.damages[1]] == [True, True]
    assert [line.split()[1] for line in found.remedies] == ["curate", "select"]
