"""Parts run once, in any number of processes, and faults name the part."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepen.engine.map_parts import SharePendingError, clear_ledger, map_parts
from deepen.errors import SourceError
from deepen.formats.workers import Share, Workers


def note(part: tuple[str, int]) -> dict[str, object]:
    directory, number = part
    with (Path(directory) / "calls").open("a") as file:
        file.write(f"{number}\n")
    return {"number": number, "pair": (number, os.getpid())}


def misbehave(part: tuple[str, int]) -> dict[str, object]:
    directory, number = part
    if number == 2:
        raise SourceError("part two is bad", hint="mend it")
    return note(part)


def unforeseen(part: tuple[str, int]) -> dict[str, object]:
    return {"value": 1 // part[1]}


def unportable(part: tuple[str, int]) -> dict[str, object]:
    class LocalError(Exception):
        pass

    raise LocalError(f"nobody can pickle {part[1]}")


def die(part: tuple[str, int]) -> dict[str, object]:
    if part[1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return note(part)


def sleep(part: tuple[str, int]) -> dict[str, object]:
    (Path(part[0]) / f"pid-{os.getpid()}").touch()
    time.sleep(3600)
    return {}


def run(function, directory, numbers, workers):
    parts = [(str(directory), number) for number in numbers]
    return map_parts(
        function,
        parts,
        workers=workers,
        ledger=directory / "ledger",
        what="test",
        unit="parts",
        sizes=[1.0] * len(parts),
    )


class Lock:
    """A run's lock, seen from one share."""

    def __init__(self, free=True):
        self.free, self.log = free, []

    def share(self, number, count):
        return Share(number, count, lambda: self.log.append("left"), self.come_back)

    def come_back(self):
        self.log.append("back" if self.free else "refused")
        return self.free


def calls(directory):
    return sorted(int(line) for line in (directory / "calls").read_text().split())


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_part_order_as_json(tmp_path, workers):
    results = run(note, tmp_path, [3, 1, 2], workers)
    assert [result["number"] for result in results] == [3, 1, 2]
    assert all(isinstance(result["pair"], list) for result in results)
    in_this_process = [result["pair"][1] == os.getpid() for result in results]
    assert all(in_this_process) if workers == 1 else not any(in_this_process)


@pytest.mark.parametrize("workers", [1, 2])
def test_finished_parts_are_not_run_again(tmp_path, workers):
    first = run(note, tmp_path, [0, 1, 2, 3], workers)
    (tmp_path / "ledger/00001.json").unlink()
    (tmp_path / "ledger/00003.json").write_text("{ half a rec")
    (tmp_path / "ledger/00002.json.tmp").write_text("left by a kill")
    again = run(note, tmp_path, [0, 1, 2, 3], workers)
    assert calls(tmp_path) == [0, 1, 1, 2, 3, 3]
    assert (again[0], again[2]) == (first[0], first[2])


def test_a_ledger_of_other_parts_or_another_function_is_not_believed(tmp_path):
    run(note, tmp_path, [0, 1], 1)
    run(note, tmp_path, [0, 9], 1)
    assert calls(tmp_path) == [0, 1, 9]
    run(misbehave, tmp_path, [0, 9], 1)
    assert calls(tmp_path) == [0, 0, 1, 9, 9]


def test_clearing_the_ledger_forgets(tmp_path):
    run(note, tmp_path, [5], 1)
    clear_ledger(tmp_path / "ledger")
    clear_ledger(tmp_path / "ledger")
    run(note, tmp_path, [5], 1)
    assert calls(tmp_path) == [5, 5]


def test_shares_cut_the_parts_between_them_and_the_last_goes_on(tmp_path):
    numbers, lock = list(range(7)), Lock()
    for number, done in ((1, [0, 3, 6]), (3, [0, 2, 3, 5, 6])):
        with pytest.raises(SharePendingError, match="parts of others are not") as caught:
            run(note, tmp_path, numbers, Workers(share=lock.share(number, 3)))
        assert calls(tmp_path) == done and caught.value.exit_code == 0
    last = lock.share(2, 3)
    results = run(note, tmp_path, numbers, Workers(share=last))
    assert [result["number"] for result in results] == numbers and calls(tmp_path) == numbers
    assert lock.log == ["left", "left", "left", "back"] and last.alone
    clear_ledger(tmp_path / "ledger")
    assert len(run(note, tmp_path, numbers, Workers(share=last))) == 7  # what comes after, it does by itself


def test_a_share_that_finds_another_going_on_ends(tmp_path):
    with pytest.raises(SharePendingError, match="another one goes on"):
        run(note, tmp_path, [0, 1], Workers(share=Lock(free=False).share(1, 1)))
    lock = Lock()
    assert len(run(note, tmp_path, [0, 1], Workers(share=lock.share(1, 1)))) == 2 and lock.log == []


def test_no_parts_no_results(tmp_path):
    assert run(note, tmp_path, [], 2) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_user_error_keeps_its_message_and_hint(tmp_path, workers):
    with pytest.raises(SourceError, match="part two is bad") as caught:
        run(misbehave, tmp_path, [0, 1, 2, 3], workers)
    assert caught.value.hint == "mend it"


def test_an_unforeseen_error_carries_its_traceback_and_part(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        run(unforeseen, tmp_path, [1, 0], 2)
    assert "in unforeseen" in caught.value.__notes__[0] and ", 0)" in caught.value.__notes__[0]


def test_an_error_that_cannot_be_sent_still_arrives(tmp_path):
    with pytest.raises(RuntimeError, match="nobody can pickle"):
        run(unportable, tmp_path, [1, 2], 2)


def test_a_killed_worker_is_an_error_that_names_its_part(tmp_path):
    with pytest.raises(Exception, match=r"SIGKILL.*, 1\)") as caught:
        run(die, tmp_path, [0, 1], 2)
    assert "fewer workers" in str(caught.value)


def test_work_after_a_failure_resumes(tmp_path):
    with pytest.raises(SourceError):
        run(misbehave, tmp_path, [0, 1, 2], 1)
    records = [json.loads(path.read_text())["result"]["number"] for path in sorted((tmp_path / "ledger").iterdir())]
    assert records == [0, 1]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_map_parts import run, sleep
if __name__ == "__main__":
    run(sleep, Path(sys.argv[1]), [0, 1], 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers of a killed parent end at once on Linux only")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, kill):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)]
    search_path = os.pathsep.join(path for path in sys.path if path)
    parent = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": search_path})
    pids = wait_for(lambda: [path.name for path in tmp_path.glob("pid-*")], lambda found: len(found) == 2)
    assert len(pids) == 2
    parent.send_signal(kill)
    parent.wait(600)
    alive = wait_for(lambda: [pid for pid in pids if is_running(pid.removeprefix("pid-"))], lambda found: not found)
    assert alive == []


def wait_for(look, enough, seconds=600.0):
    end = time.monotonic() + seconds
    while not enough(found := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
