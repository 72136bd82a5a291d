"""The guarded process: takes files from its standard input, answers with their text, one after the other.

Run as ``python -m deepen.ingest.extract.process SECONDS MEMORY_MB``. A request is two blocks (JSON header, bytes of
the file), an answer one block of JSON; a block is its length (uint64, little-endian) and its bytes. The CPU limit of a
request is a timer whose signal ends the process; the memory limit makes allocations fail, at which libraries abort. So
the process is two: one works, the other waits for its end and tells what it was (a process started from a large one
cannot know its own peak memory; one forked from a small one can).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import struct
import sys
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from deepen.ingest.extract.result import Extracted, Refused
from deepen.ingest.read.records import brief

_LENGTH = struct.Struct("<Q")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SPENT_SHARE = 0.5
"""A process that still holds this share of its memory limit after a file is replaced; one that dies with as much in
use died of memory."""


def main(seconds: float, memory_bytes: int) -> None:
    """Answer requests until standard input ends."""
    _end_with_parent()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent decides when to end
    worker = os.fork()  # nothing has started a thread yet
    if worker:
        requests.close()  # or the parent would go on writing to this end when the worker is gone
        _send(answers, _how_it_ended(worker, seconds, memory_bytes))
        return
    _end_with_parent()  # a fork does not inherit it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an answer here: no gigabytes of core file
    # On top of what the interpreter and its libraries take, so that the setting is about the file alone.
    limit = _memory_in_use() + memory_bytes
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # private memory only: mapped libraries do not count
    while (header := _block(requests)) is not None:
        try:
            data = _block(requests) or b""
        except MemoryError:
            _send(answers, {"reason": "extraction_memory", "detail": "the file alone is too large", "is_spent": True})
            return
        # SIGPROF keeps its default, to end the process: a handler in Python would wait for the library to come back.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = _answer(json.loads(header), data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        del data
        gc.collect(0)  # what the file leaves must be gone before memory is measured
        spent = answer.get("reason") == "extraction_memory" or _memory_in_use() > limit - memory_bytes * _SPENT_SHARE
        _send(answers, {**answer, "is_spent": spent})


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    text = json.dumps(answer).encode()
    answers.write(_LENGTH.pack(len(text)) + text)
    answers.flush()


def _how_it_ended(worker: int, seconds: float, memory_bytes: int) -> dict[str, Any]:
    """Wait for the working half and say in an answer what became of the file it was working on."""
    _, status, usage = os.wait4(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    peak_bytes = usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if code == -signal.SIGPROF:
        reason, detail = "extraction_timeout", f"more than {seconds:g} CPU seconds"
    # SIGKILL is the kernel's, out of memory. Libraries abort in many ways when an allocation fails: the peak tells why.
    elif code == -signal.SIGKILL or peak_bytes > memory_bytes * _SPENT_SHARE:
        reason, detail = "extraction_memory", f"the library gave up ({how}) near {memory_bytes // 10**6} MB"
    else:
        reason, detail = "extraction_crash", f"the library ended its process ({how})"
    return {"reason": reason, "detail": detail, "is_spent": True}


def _answer(header: dict[str, Any], data: bytes) -> dict[str, Any]:
    try:
        extracted: Extracted = _function(header["function"])(data, header["options"])
    except Refused as refused:
        return {"reason": refused.reason, "detail": str(refused)}
    except (zipfile.BadZipFile, zlib.error) as error:
        return {"reason": "corrupt_archive", "detail": brief(error)}
    except MemoryError:
        return {"reason": "extraction_memory", "detail": "more memory than `ingest.extraction.memory_MB` allows"}
    except Exception as error:  # whatever a library raises for bytes that nobody foresaw
        if "emory" in str(error):  # lxml says so in its own words
            return {"reason": "extraction_memory", "detail": brief(error)}
        return {"reason": "extraction_failed", "detail": f"{type(error).__name__}: {brief(error)}"}
    return {"text": extracted.text, "meta": extracted.meta}


@cache
def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _block(stream: BinaryIO) -> bytes | None:
    start = stream.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(start)
    return stream.read(length)


def _memory_in_use() -> int:
    """Bytes of private memory that count towards the limit."""
    if sys.platform != "linux":
        return 0
    status = Path("/proc/self/status").read_text()
    # What RLIMIT_DATA counts.
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) * 10**6)
