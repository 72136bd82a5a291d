"""Lets one process of a training meet with a fault, to test that the others do not hang.

Python imports this at start when its folder is on PYTHONPATH. ``DEEPEN_FAULT=RANK:FUNCTION:COUNT:FAULT`` strikes at the
COUNT-th call of a function of that name in the first start of that rank: the name of a signal, ``full`` (files may not
grow any more, as on a full disk) or ``raise``.
"""

import os
import resource
import signal
import sys
import threading


def strike(fault):
    if fault == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    elif fault == "raise":
        raise RuntimeError("struck by a test")
    else:
        os.kill(os.getpid(), getattr(signal, fault))


def install(function, count, fault):
    seen = 0

    def profile(frame, event, _argument):
        nonlocal seen
        if event == "call" and frame.f_code.co_name == function:
            seen += 1
            if seen == count:
                sys.setprofile(None)
                threading.setprofile(None)
                strike(fault)

    threading.setprofile(profile)
    sys.setprofile(profile)


if "DEEPEN_FAULT" in os.environ and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
    rank, function, count, fault = os.environ["DEEPEN_FAULT"].split(":")
    if os.environ.get("RANK") == rank:
        install(function, int(count), fault)
