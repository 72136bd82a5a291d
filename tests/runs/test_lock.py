import json
import os
import signal
import subprocess
import sys
import time

import pytest

from deepen.errors import RunError
from deepen.runs.lock import locked

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
