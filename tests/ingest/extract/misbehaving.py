"""Extractors that do what libraries sometimes do."""

import os
import signal
import time


def wait(data, options):
    """Hang without computing."""
    time.sleep(1000)


def grow(data, options):
    """Take memory without end."""
    held = []
    while True:
        held.append(bytearray(10_000_000))


HELD = []


def keep(data, options):
    """Take as many MB as the file says and never give them back."""
    from deepen.ingest.extract.result import Extracted

    HELD.append(bytearray(b"x") * (int(data) * 1_000_000))
    return Extracted("kept")


def die(data, options):
    """End the process, as a fault in a C library does."""
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(data, options):
    """Raise what nobody foresaw."""
    raise AttributeError("no such thing")


def pid(data, options):
    """Say which process this is."""
    from deepen.ingest.extract.result import Extracted

    print("noise on standard output")
    return Extracted(str(os.getpid()))
