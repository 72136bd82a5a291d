"""Kills its own process with SIGKILL at the n-th file event, to test that any stage survives it.

Python imports this at start when its folder is on PYTHONPATH. Events are opens for writing and renames below
DEEPEN_KILL_UNDER. With DEEPEN_KILL_LOG events are only logged; with DEEPEN_KILL_AT the process dies at that event.
"""

import os
import signal
import sys


def install(under, at, log):
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(path, (str, bytes)) and (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            del mode
        else:
            path, writes = arguments[0], True
        if not writes or under not in os.path.abspath(os.fsdecode(path)):
            return
        seen += 1
        if log:
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{event} {os.fsdecode(path)}\n".encode())
            os.close(descriptor)
        elif seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def filtered(event, arguments):
        if event in ("open", "os.rename"):
            hook(event, arguments)

    sys.addaudithook(filtered)


if "DEEPEN_KILL_UNDER" in os.environ:
    install(
        os.environ["DEEPEN_KILL_UNDER"], int(os.environ.get("DEEPEN_KILL_AT", "0")), os.environ.get("DEEPEN_KILL_LOG")
    )
