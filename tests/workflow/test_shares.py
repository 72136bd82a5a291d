"""A job array: shares of the parts beside each other, the same bytes in the end."""

import json
import subprocess
import sys

import pytest

from deepen.errors import RunError
from deepen.recipe.reading import load
from deepen.runs.lock import Turn, locked
from deepen.workflow.run import RunOptions, parse_share, run_pipeline


@pytest.fixture
def many_parts(tiny, tmp_path, monkeypatch):
    """The recipe with sources cut into several parts."""
    monkeypatch.setattr("deepen.ingest.stage._PART_BYTES", 4_000)
    for name in ("code", "prose", "other"):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.jsonl").write_text("".join(lines[number::4]))
        tiny.write_text(tiny.read_text().replace(f"{name}.jsonl", name))
    return load(tiny, None, ["curate.steps=[normalize, near_duplicates]", "machine.workers=1"])


def contents(run):
    files = [path for stage in ("ingest", "curate", "tokenize") for path in (run / stage).rglob("*") if path.is_file()]
    return {path.relative_to(run): path.read_bytes() for path in files if path.name != "manifest.json"}


def finish(loaded, run, share=None):
    return run_pipeline(loaded.recipe, loaded.machine, run, RunOptions(last="tokenize", offline=True, share=share))


def test_shares_one_after_the_other_give_the_bytes_of_a_whole_run(many_parts, tmp_path, capsys):
    finish(many_parts, tmp_path / "whole" / "tiny")
    run = tmp_path / "shares" / "tiny"
    made = [set(finish(many_parts, run, (number, 3))) for number in (2, 3, 1)]
    assert made == [set(), set(), {"ingest", "curate", "tokenize"}]
    assert "parts of others are not" in capsys.readouterr().err
    assert contents(run) == contents(tmp_path / "whole" / "tiny") and len(contents(run)) > 20


def test_a_whole_run_finishes_what_shares_began(many_parts, tmp_path):
    finish(many_parts, tmp_path / "whole" / "tiny")
    run = tmp_path / "shares" / "tiny"
    assert finish(many_parts, run, (2, 3)) == {}
    num_parts = len(list((run / "ingest").rglob("*.parquet")))
    assert 0 < num_parts < 12
    finish(many_parts, run)
    assert contents(run) == contents(tmp_path / "whole" / "tiny")


def test_shares_at_the_same_time_end_with_everything_done(tiny, tmp_path):
    arguments = [sys.executable, "-m", "deepen.cli", "curate", str(tiny), "--runs", str(tmp_path / "runs")]
    arguments += ["--set", "machine.workers=1", "--offline", "--json"]
    started = [
        subprocess.Popen(
            [*arguments, "--part", f"{number}/3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in (1, 2, 3)
    ]
    ended = [process.communicate(timeout=900) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    assert any("curate" in json.loads(out)["stages"] for out, _ in ended)
    assert (tmp_path / "runs/tiny/curate/manifest.json").is_file()


def test_who_may_be_at_work_beside_whom(tmp_path):
    with Turn(tmp_path, 1, 3) as turn:
        turn.leave()
        with pytest.raises(RunError, match="shares of a job array"), locked(tmp_path):
            pass
        with pytest.raises(RunError, match="share 1 is at work"), Turn(tmp_path, 1, 3):
            pass
        with pytest.raises(RunError, match="into 3, not 4"), Turn(tmp_path, 2, 4):
            pass
        with Turn(tmp_path, 2, 3) as other:
            assert not turn.come_back()
            other.leave()
            assert turn.come_back() and not other.come_back()
    with locked(tmp_path), pytest.raises(RunError, match="another run is at work"), Turn(tmp_path, 1, 3):
        pass
    with Turn(tmp_path, 2, 4):
        pass


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", ""])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(RunError, match="is no share"):
        parse_share(text)


def test_a_share_is_read():
    assert (parse_share("2/8"), parse_share(None)) == ((2, 8), None)
