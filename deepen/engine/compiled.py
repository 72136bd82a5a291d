"""Compiled kernels: ``njit`` with a cache that can never be stale.

numba notices changes in the file of a kernel, but not in the files of the kernels that it calls, and would go on using
the old machine code of those. The cache directory is therefore named by the sources of all kernels together.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numba
import xxhash

_ROOMS = ("curate", "mix", "tokenize")
"""Where kernels are."""


def kernel_digest() -> str:
    """Identity of all sources that kernels may be compiled from."""
    package = Path(__file__).resolve().parents[1]
    digest = xxhash.xxh3_128()
    for path in sorted(path for room in _ROOMS for path in (package / room).rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_directory() -> Path:
    """Where compiled kernels are kept: below ``NUMBA_CACHE_DIR`` or the user's cache.

    Where neither can be written to, in a fresh folder that goes with the process. Never in a place that others could
    have prepared, because what is loaded from there is run.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("NUMBA_CACHE_DIR") or home / "deepen")
    directory = root / f"kernels-{kernel_digest()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass
    fresh = Path(tempfile.mkdtemp(prefix="deepen-kernels-"))
    atexit.register(shutil.rmtree, fresh, ignore_errors=True)
    return fresh


def is_cold() -> bool:
    """Whether no kernel was compiled yet, so that the first use of each takes seconds."""
    return not any(Path(numba.config.CACHE_DIR).rglob("*.nbi"))


numba.config.CACHE_DIR = str(cache_directory())
njit: Any = numba.njit
