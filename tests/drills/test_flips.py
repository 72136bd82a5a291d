"""One flipped bit in every kind of file of a finished run: the next command that reads the file finds it and names it.

Twice for each kind. First the run as it is: nothing is "up to date" with a damaged file. Then as if all files were too
large to be hashed for that, and with the stages gone that were made from the file: whoever reads it next finds it.
"""

import os
import random
import shutil

import pytest

from deepen.board.report import write_report
from deepen.errors import DeepenError
from deepen.formats import unchanged
from deepen.recipe.reading import load
from deepen.runs.verify import verify
from deepen.workflow.run import RunOptions, run_pipeline
from deepen.workflow.stages import STAGES

KINDS = {
    # file: the stage that reads it next; "run": nothing but a look at the whole stage does
    "ingest/manifest.json": "curate", "ingest/documents/code-00000.parquet": "curate",
    "curate/manifest.json": "tokenize", "curate/documents/prose-00000.parquet": "tokenize",
    "curate/held_out/code.parquet": "baseline", "curate/dropped/code-00000.parquet": "run",
    "tokenize/manifest.json": "mix", "tokenize/tokenizer/tokenizer.json": "baseline",
    "tokenize/shards/code.bin": "train", "tokenize/shards/prose.bin.blocks": "train",
    "tokenize/shards/code.idx": "mix", "tokenize/documents/prose.npy": "mix",
    "mix/manifest.json": "train", "mix/packs/code.rows.npy": "train", "mix/packs/prose.segments.npy": "train",
    "mix/order/000.u64": "train", "mix/segments.json": "train", "mix/mixture.json": "train",
    "baseline/manifest.json": "train", "baseline/held_out.parquet": "train",
    "train/manifest.json": "evaluate", "train/metrics.jsonl": "run", "train/scores.jsonl": "run",
    "train/schedule.json": "run", "train/checkpoints/LAST/manifest.json": "evaluate",
    "train/checkpoints/LAST/state.json": "evaluate", "train/checkpoints/LAST/model.safetensors": "evaluate",
    "train/checkpoints/FIRST/optimizer.safetensors": "evaluate",
    "evaluate/manifest.json": "select", "evaluate/scores.jsonl": "select", "evaluate/held_out/LAST.parquet": "run",
    "select/manifest.json": "export", "select/choice.json": "export",
    "export/manifest.json": "run", "export/model.safetensors": "run", "export/config.json": "run",
    "export/tokenizer.json": "run", "export/README.md": "run", "export/deepen.json": "run",
    "report.html": "verify",
}  # fmt: skip


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the finished run with its report."""
    made = shutil.copytree(finished_run, tmp_path / "runs" / "tiny", copy_function=os.link)
    (made / "lock").unlink()
    write_report(made)
    return made


def named(run, file):
    """The path of a kind's file in this run."""
    steps = sorted(path.name for path in (run / "train" / "checkpoints").iterdir())
    return run / file.replace("LAST", steps[-1]).replace("FIRST", steps[0])


def flip(path):
    """Flip one bit at a place that depends on the file's name alone, in a file of its own."""
    data, generator = bytearray(path.read_bytes()), random.Random(path.name)
    assert data, f"`{path}` is empty"
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(7)
    path.unlink()
    path.write_bytes(data)


def outcome(run, path, last, capfd):
    """ "found" when the command ends with an error, or passes a checkpoint over with a message, that names the file."""
    capfd.readouterr()
    loaded = load(run, None, ["machine.workers=1"])
    try:
        run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(last=last, offline=True))
        told = capfd.readouterr().err
    except DeepenError as error:
        told = str(error)
    return "found" if str(path) in told else f"NOT FOUND: {told[-300:]}"


@pytest.mark.parametrize(
    "as_large",
    [pytest.param(False, id="as they are"), pytest.param(True, id="as if they were large", marks=pytest.mark.slow)],
)
def test_a_flipped_bit_is_found_by_the_next_command_that_reads_it(run, finished_run, monkeypatch, capfd, as_large):
    if as_large:
        monkeypatch.setattr(unchanged, "SMALL_BYTES", -1)
    found = {}
    for file, reader in KINDS.items():
        path = named(run, file)
        if as_large and reader in ("run", "verify"):
            continue  # nothing but `deepen verify` hashes a large file that no stage reads
        if not path.is_file() or not path.stat().st_size:
            continue
        whole = path.read_bytes()
        flip(path)
        assert any(str(path) in line for line in verify(run).damages), f"`deepen verify` does not see {file}"
        if reader == "verify":
            found[file] = "found"
        elif as_large:
            copy = shutil.copytree(run, run.parent / "copy" / "tiny", copy_function=os.link)
            for name in list(STAGES)[list(STAGES).index(reader) :]:
                shutil.rmtree(copy / name)
            found[file] = outcome(copy, copy / path.relative_to(run), reader, capfd)
            shutil.rmtree(copy.parent)
        else:
            found[file] = outcome(run, path, "export", capfd)
        path.write_bytes(whole)
    print("\n".join(f"{file:50} {what}" for file, what in found.items()))
    print(f"tried {len(found)}, found {sum(what == 'found' for what in found.values())}")
    assert len(found) >= (18 if as_large else 35)
    assert {file: what for file, what in found.items() if what != "found"} == {}
