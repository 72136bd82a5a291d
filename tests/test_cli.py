import json
import subprocess
import sys

import pytest


def deepen(*arguments, cwd=None):
    command = [sys.executable, "-m", "deepen.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=900)


def test_help_names_every_command():
    done = deepen("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("ingest", "curate", "train", "account", "trace", "demo"))


def test_init_check_and_plan(tmp_path):
    assert deepen("init", "r.yaml", cwd=tmp_path).returncode == 0
    assert "exists already" in deepen("init", "r.yaml", cwd=tmp_path).stderr
    checked = deepen("check", "r.yaml", cwd=tmp_path)
    assert checked.returncode == 2
    assert "ingest.sources[0].path" in checked.stderr and "r.yaml:" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_check_as_json_lists_the_problems(tmp_path):
    (tmp_path / "r.yaml").write_text("name: x\nbase: nothing/here/x\n")
    done = deepen("check", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert {"ingest", "train"} <= {problem["path"] for problem in json.loads(done.stdout)["problems"]}


def test_explain_prints_meaning_default_and_children():
    done = deepen("explain", "train.schedule")
    assert "cosine" in done.stdout and "warmup" in done.stdout and "default:" in done.stdout
    assert "`20 MB`" in deepen("explain", "ingest.sources.limit").stdout
    wrong = deepen("explain", "train.scedule")
    assert wrong.returncode == 1 and "did you mean `schedule`" in wrong.stderr


@pytest.mark.parametrize(
    "line",
    ["status nowhere", "account nowhere", "verify nowhere", "show nowhere", "trace nowhere ff", "report nowhere",
     "rm nowhere", "chat nowhere", "run nowhere.yaml", "plan nowhere.yaml", "fetch nowhere.yaml"],
)  # fmt: skip
def test_what_is_not_there_is_a_clear_error(tmp_path, line):
    done = deepen(*line.split(), cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("nosuch",), ("run",), ("show", "x", "--step", "many")])
def test_wrong_usage_exits_with_2(arguments):
    done = deepen(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
