"""Every looking command on what is no run, on runs that have only begun, and on damaged ones.

Whatever is wrong, a user reads what and where it is and what to do, never a traceback.
"""

import json
import os
import shutil
import sys

import pytest

from deepen.cli import COMMANDS, main
from deepen.formats.manifest import MANIFEST, UNFINISHED
from deepen.workflow.stages import STAGES

LOOKING = [
    "status RUN", "status RUN --json", "diagnose RUN", "diagnose RUN --json", "compare RUN", "account RUN",
    "verify RUN", "show RUN", "show RUN/ingest", "show RUN/curate --dropped all", "show RUN/tokenize",
    "show RUN/mix --step 2", "show RUN/train", "show RUN/train/checkpoints", "show RUN/evaluate", "show RUN/select",
    "trace RUN ff00", "trace RUN code:x", "quarantine RUN", "report RUN", "plan RUN", "check RUN",
    "remix RUN --at 3 --domain-share 0.5",
]  # fmt: skip
OTHERS = ["chat RUN", "rm RUN/ingest", "rm RUN", "branch RUN --at 4", "launch RUN --slurm", "fetch RUN", "prove RUN"]
OTHERS += [f"{name} RUN" for name in ("run", "ingest", "train", "evaluate", "export")] + ["evaluate RUN --watch"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command line in this process; returns its exit code and what it wrote to both streams."""

    def run(line, target):
        monkeypatch.setattr(sys, "argv", ["deepen", *(word.replace("RUN", str(target)) for word in line.split())])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:  # anything else would be a traceback
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def refused(code, err, line):
    """Whether a command line ended as users' errors do, with a remedy; fails for anything but that and success."""
    if code in (0, None):
        return False
    assert code in (1, 2) and err.startswith("error: ") and "Traceback" not in err, f"{line}: {err}"
    assert "hint: " in err or line.startswith(("account", "verify")), f"{line} names no remedy: {err}"
    return True


@pytest.fixture
def copied(finished_run, tmp_path):
    """A copy of the finished run whose files may be replaced, not written into."""
    run = shutil.copytree(finished_run, tmp_path / "runs" / "tiny", copy_function=os.link)
    (run / "lock").unlink()
    return run


def nothing(folder):
    return folder / "nowhere"


def a_file(folder):
    (folder / "file.txt").write_text("hello\n")
    return folder / "file.txt"


def no_text(folder):
    (folder / "file.bin").write_bytes(b"\xff\xfe\x00\x80" * 9)
    return folder / "file.bin"


def an_empty_folder(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize("made", [nothing, a_file, no_text, an_empty_folder])
def test_what_is_no_run_is_refused_by_name(call, tmp_path, made):
    target = made(tmp_path)
    for line in [*LOOKING, *OTHERS]:
        code, _, err = call(line, target)
        assert refused(code, err, line), line
        assert target.name in err, f"{line} does not name the path: {err}"
    assert not (tmp_path / "nowhere").exists(), "a path that was mistyped was made"


@pytest.mark.parametrize("finished", [0, 1, 5])
def test_runs_that_have_only_begun_can_be_looked_at(call, copied, finished):
    for name in list(STAGES)[finished:]:
        shutil.rmtree(copied / name)
    done = [line for line in LOOKING if not refused(*call(line, copied)[::2], line)]
    assert {"status RUN", "diagnose RUN", "show RUN"} <= set(done)
    assert ("report RUN" in done) == (finished > 0)
    assert ("show RUN/mix --step 2" in done) == (finished > 3)


def test_an_unfinished_training_can_be_looked_at(call, copied):
    for name in ("evaluate", "select", "export"):
        shutil.rmtree(copied / name)
    (copied / "train" / MANIFEST).rename(copied / "train" / UNFINISHED)
    done = [line for line in LOOKING if not refused(*call(line, copied)[::2], line)]
    assert {"status RUN", "diagnose RUN", "report RUN", "show RUN/train/checkpoints", "quarantine RUN"} <= set(done)
    replace(copied / "train" / UNFINISHED, lambda data: data[:-20])
    assert "unfinished.json" in call("status RUN", copied)[2]


def damage(path, change):
    """Change a file of a copied run, or make one that this run has none of."""
    if not path.exists():
        path.write_bytes(b"")
    replace(path, change)


def replace(path, change):
    data = path.read_bytes()
    path.unlink()  # the file itself is the finished run's
    path.write_bytes(change(data))


DAMAGE = {
    "empty": lambda data: b"",
    "torn": lambda data: data[: len(data) // 2],
    "a list": lambda data: b"[1, 2]\n",
    "something else": lambda data: b'{"a": 1}\n' + data[:0],
}
LINES = {
    "torn line": lambda data: data[:10] + b"\n" + data,
    "no record": lambda data: b"17\n" + data,
    "another record": lambda data: b'{"a": 1}\n' + data,
    "no text": lambda data: b"\xff\xfe\x80\n" + data,
}
FILES = [
    (file, kind, change)
    for file in (
        "recipe.yaml", "ingest/manifest.json", "mix/manifest.json", "train/manifest.json", "evaluate/manifest.json",
        "select/choice.json", "mix/segments.json",
    )
    for kind, change in DAMAGE.items()
]  # fmt: skip
FILES += [
    (file, kind, change)
    for file in ("train/metrics.jsonl", "train/scores.jsonl", "evaluate/scores.jsonl", "train/decisions.jsonl")
    for kind, change in LINES.items()
]
TORN = ("curate/dropped/code-00000.parquet", "mix/packs/code.rows.npy", "tokenize/tokenizer/tokenizer.json")
FILES += [(file, "torn", DAMAGE["torn"]) for file in TORN]
LOUD = {"recipe.yaml": "diagnose RUN", "train/metrics.jsonl": "report RUN", "evaluate/scores.jsonl": "diagnose RUN"}
LOUD |= {"select/choice.json": "show RUN/select", "train/decisions.jsonl": "quarantine RUN"}
LOUD |= {"train/scores.jsonl": "show RUN/train", "curate/dropped/code-00000.parquet": "show RUN/curate --dropped all"}
LOUD |= dict.fromkeys(("mix/segments.json", *TORN[1:]), "show RUN/mix --step 2")
QUICK = ["status RUN", "diagnose RUN", "compare RUN", "report RUN"]


@pytest.mark.parametrize(("file", "kind", "change"), FILES, ids=[f"{file}: {kind}" for file, kind, _ in FILES])
def test_a_damaged_file_is_named(call, copied, file, kind, change):
    damage(copied / file, change)
    loud = LOUD.get(file, "status RUN")
    errors = {line: err for line in {*QUICK, loud} for code, _, err in [call(line, copied)] if refused(code, err, line)}
    assert errors or (kind == "another record" and file != "evaluate/scores.jsonl"), f"nobody noticed: {file} {kind}"
    if kind not in ("another record", "something else"):
        assert (copied / file).name in errors[loud], errors


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({file for file, _, _ in FILES}))
def test_no_command_answers_damage_with_a_traceback(call, finished_run, tmp_path, file):
    """Every looking command on every kind of damage to a file."""
    for number, (kind, change) in enumerate(({**DAMAGE, **LINES}).items()):
        run = shutil.copytree(finished_run, tmp_path / str(number) / "tiny", copy_function=os.link)
        (run / "lock").unlink()
        damage(run / file, change)
        for line in LOOKING:
            code, _, err = call(line, run)
            refused(code, err, f"{line} ({kind})")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_removed_leaves_a_run_to_be_looked_at(call, copied, stage):
    shutil.rmtree(copied / stage)
    for line in ("status RUN", "diagnose RUN", "account RUN", "show RUN", "report RUN"):
        assert not refused(*call(line, copied)[::2], line)
    for line in ("trace RUN ff00", "show RUN/mix --step 2", "compare RUN"):
        refused(*call(line, copied)[::2], line)


def test_a_line_that_a_kill_cut_off_is_no_damage(call, copied):
    for file in ("train/metrics.jsonl", "train/scores.jsonl"):
        replace(copied / file, lambda data: data[:-5])
    for line in ("status RUN", "diagnose RUN", "report RUN", "show RUN/train"):
        assert not refused(*call(line, copied)[::2], line)


WRONG_OPTIONS = {
    "check RUN --set train.tokens=[1": "not valid YAML",
    "check RUN --set train.tokens": "expected `key=value`",
    "run RUN --machine RUN/no.yaml": "no machine file",
    "run RUN --until nowhere": "no stage `nowhere`",
    "run RUN --part 9/3": "is no share",
    "launch RUN --ssh RUN/ingest": "cannot be read",
    "launch RUN --ssh RUN/tokenize/shards/code.bin": "cannot be read",
    "branch RUN --at 4 --decay x": "expected an amount",
    "branch RUN --at 999": "no checkpoint of step 999",
    "remix RUN --at 3 --domain-share 0.5 --weight x": "is no weight",
    "show RUN/mix --step 999": "no step 999",
    "show RUN/ingest --sample -3": "--sample",
    "trace RUN zz": "no document id",
    "biographies RUN/recipe.yaml": "recipe.yaml",
    "run RUN/recipe.yaml --runs RUN/pins": "pins",
    "demo --runs RUN/recipe.yaml": "recipe.yaml",
}


@pytest.mark.parametrize("line", WRONG_OPTIONS)
def test_wrong_options_are_named(call, copied, line):
    if "pins" in line:
        (copied / "pins").write_text("a file")
    code, _, err = call(line, copied)
    assert code in (1, 2) and "Traceback" not in err and WRONG_OPTIONS[line] in err, err


def test_a_checkpoint_can_be_shown_and_verified_by_itself(call, copied):
    step = sorted((copied / "train/checkpoints").iterdir())[-1]
    code, out, _ = call("show RUN --json", step)
    assert code == 0 and json.loads(out)["step"] == int(step.name[5:])
    assert call("verify RUN", step)[0] == 0
    replace(step / "model.safetensors", lambda data: data[:-1] + b"\0\0")
    code, _, err = call("verify RUN", step)
    assert code == 1 and "model.safetensors" in err


def test_every_command_that_takes_a_run_is_among_those_tried():
    tried = {line.split()[0] for line in [*LOOKING, *OTHERS]}
    makes_a_recipe_of = {"init", "explain", "biographies", "demo"}
    like_train = {"curate", "tokenize", "mix", "baseline", "select"}
    assert set(COMMANDS) - makes_a_recipe_of - like_train == tried
