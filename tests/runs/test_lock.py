import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from deepen.errors import RunError
from deepen.runs.lock import hold, locked
from deepen.runs.references import find_neighbour, references_to

HOLD = """
import sys, time
from pathlib import Path
from deepen.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_in_the_same_directory_is_refused(tmp_path, holder):
    with pytest.raises(RunError, match=f"another run is at work.*process {holder.pid}"), locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


@pytest.mark.parametrize(("age_seconds", "refused"), [(5, True), (119, True), (121, False), (500, False)])
def test_another_hosts_lock_counts_while_its_heart_beats(tmp_path, age_seconds, refused, capsys, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    record = {"host": "elsewhere", "pid": 1, "since": "then", "heartbeat": time.time() - age_seconds}
    (tmp_path / "lock").write_text(json.dumps(record))
    if refused:
        with pytest.raises(RunError, match="process 1 on elsewhere"), locked(tmp_path):
            pass
    else:
        with locked(tmp_path):
            assert "taking it over" in capsys.readouterr().err


ODD = [
    b"",
    b"\0\xff" * 100,
    b"[1, 2]",
    b'"text"',
    b"5",
    b"null",
    b'{"other": 1}',
    b'{"host": 5}',
    b"[" * 4_000,
    b'{"host": "elsewhere"}',
    b'{"host": "elsewhere", "heartbeat": "soon"}',
    b'{"host": "elsewhere", "heartbeat": NaN}',
    b'{"host": "elsewhere", "heartbeat": null}',
    b'{"heartbeat": 1}',
    b'{"host": "elsewhere", "heartbeat": true}',
]


@pytest.mark.parametrize("content", ODD)
def test_odd_contents_of_a_lock_block_nobody(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ODD)
def test_odd_contents_of_a_held_lock_are_refused_all_the_same(tmp_path, holder, content):
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(RunError, match="another run is at work"), locked(tmp_path):
        pass


def lock_of_elsewhere(path, *, ahead_seconds, written_ago_seconds):
    (path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "heartbeat": time.time() + ahead_seconds}))
    written = time.time() - written_ago_seconds
    os.utime(path / "lock", (written, written))


def test_a_lock_from_the_future_goes_by_the_time_of_its_file(tmp_path, capsys):
    lock_of_elsewhere(tmp_path, ahead_seconds=86_400, written_ago_seconds=5)
    with pytest.raises(RunError, match="process 1 on elsewhere"), locked(tmp_path):
        pass
    lock_of_elsewhere(tmp_path, ahead_seconds=86_400, written_ago_seconds=500)
    with locked(tmp_path):
        said = capsys.readouterr().err
    assert "86400 s ahead" in said and "taking it over" in said
    lock_of_elsewhere(tmp_path, ahead_seconds=86_400, written_ago_seconds=-86_400)
    with pytest.raises(RunError, match="a clock is wrong") as caught, locked(tmp_path):
        pass
    assert "remove" in caught.value.hint


def test_a_lock_that_is_removed_during_work_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deepen.runs.lock._HEARTBEAT_SECONDS", 0.05)
    with locked(tmp_path):
        (tmp_path / "lock").unlink()
        time.sleep(0.5)
    assert capsys.readouterr().err.count("removed or replaced while this run is at work") == 1


def test_a_lock_that_cannot_be_opened_says_why(tmp_path, monkeypatch):
    (tmp_path / "one" / "lock").mkdir(parents=True)
    with pytest.raises(RunError, match="cannot be opened for writing") as caught, locked(tmp_path / "one"):
        pass
    assert "must be a file" in caught.value.hint
    (tmp_path / "two").mkdir()
    os.mkfifo(tmp_path / "two" / "lock")
    with pytest.raises(RunError, match="no ordinary file"), locked(tmp_path / "two"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be opened for writing") as caught, locked(tmp_path / "file" / "run"):
        pass
    assert "--runs" in caught.value.hint

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "lock").write_text("")
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RunError, match="Permission denied") as caught, locked(tmp_path / "three"):
        pass
    assert "belongs to user" in caught.value.hint


def test_a_damaged_neighbour_blocks_nobody(tmp_path, capsys):
    for number, content in enumerate([b"", b"{", b"[" * 100_000, b"\xff"]):
        (tmp_path / f"other{number}" / "ingest").mkdir(parents=True)
        (tmp_path / f"other{number}" / "ingest" / "manifest.json").write_bytes(content)
    assert find_neighbour(tmp_path / "mine", "ingest", "f" * 32) is None
    assert capsys.readouterr().err.count("passing over") == 4
    (tmp_path / "mine" / "ingest").mkdir(parents=True)
    assert references_to(tmp_path / "mine" / "ingest") == []


def test_a_share_does_not_wait_for_a_lock_that_will_never_open(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(RunError, match="cannot be opened"), hold(tmp_path, (1, 2)):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match="cannot be locked: No locks available"), locked(tmp_path):
        pass
