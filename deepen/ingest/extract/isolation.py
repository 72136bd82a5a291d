"""Extraction in a guarded process: a file that hangs, explodes or crashes its library costs one named reject.

Each worker keeps one such process for all its files, because starting one takes longer than most files; it is started
again after a kill, and when it has grown. Time is counted in CPU seconds, so that a busy machine does not change which
files are read; a file that waits instead of computing is ended after ten times as long on the clock.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any

from deepen.ingest.config import Extraction

_CLOCK_PER_CPU_SECOND = 10
_PERHAPS_OF_BEFORE = ("extraction_memory", "extraction_crash")
"""What a file may owe to those that its process took apart before."""
_LENGTH = struct.Struct("<Q")
_children: dict[Extraction, _Child] = {}


def extract_isolated(function: str, data: bytes, options: dict[str, Any], limits: Extraction) -> dict[str, Any]:
    """What ``function`` ("module:name") makes of ``data``: ``{"text", "meta"}``, or ``{"reason", "detail"}``."""
    child = _children.get(limits)
    was_used = child is not None
    if child is None:
        child = _children[limits] = _Child(limits)
    answer = child.ask(function, data, options)
    # Stopped before the next file, not at the next request: a process that has grown holds memory while others work.
    if child.is_spent:
        _children.pop(limits).stop()
    if was_used and answer.get("reason") in _PERHAPS_OF_BEFORE:
        return extract_isolated(function, data, options, limits)  # alone, so that the files before do not decide
    return answer


class _Child:
    """This side of a guarded process."""

    def __init__(self, limits: Extraction) -> None:
        self._limits = limits
        self.is_spent = False
        # It must find what this process finds.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        command = [sys.executable, "-m", "deepen.ingest.extract.process", str(limits.seconds), str(limits.memory_MB)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries complain there about every other file
            env=environment,
            process_group=0,  # so that both its halves can be ended at once
        )
        atexit.register(self.stop)

    def ask(self, function: str, data: bytes, options: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request, or the reject that tells how the process ended."""
        header = json.dumps({"function": function, "options": options}).encode()
        assert self._process.stdin is not None, "stdin is a pipe"
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended and tells why
                for piece in (_LENGTH.pack(len(header)), header, _LENGTH.pack(len(data)), data):
                    self._process.stdin.write(piece)
                self._process.stdin.flush()
            answer = self._answer()
        except EOFError:
            self.is_spent = True
            return {"reason": "extraction_crash", "detail": "the guarded process is gone"}
        except TimeoutError:
            self.is_spent = True
            seconds = self._limits.seconds * _CLOCK_PER_CPU_SECOND
            return {"reason": "extraction_timeout", "detail": f"no answer within {seconds:g} seconds"}
        self.is_spent = bool(answer.pop("is_spent"))
        return answer

    def stop(self) -> None:
        """End the process."""
        atexit.unregister(self.stop)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the group: the waiting half and the working one
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                _close(pipe)

    def _answer(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._limits.seconds * _CLOCK_PER_CPU_SECOND
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        answer = json.loads(self._read(length, deadline))
        return dict(answer)

    def _read(self, num_bytes: int, deadline: float) -> bytes:
        assert self._process.stdout is not None, "stdout is a pipe"
        descriptor, pieces = self._process.stdout.fileno(), []
        while num_bytes:
            # Raw reads: a buffered one waits for all bytes, past any deadline, and `select` does not see what it holds.
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            piece = os.read(descriptor, min(num_bytes, 1 << 20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            num_bytes -= len(piece)
        return b"".join(pieces)


def _close(pipe: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # what was still to be written is for a process that has ended
        pipe.close()
