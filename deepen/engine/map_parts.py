"""Map a function over parts in local processes, resuming at the first part that is not finished.

Each part writes its own files and returns a small JSON result; the result is committed to a ledger after the files
are in place, so a rerun skips what is done. Workers are plain processes with a pipe each instead of an executor:
only so can a worker that the system kills be told apart from the others and its part be named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import xxhash

from deepen.engine.workers import run_in_workers
from deepen.formats.atomic import write_json
from deepen.progress import track

P = TypeVar("P")


def map_parts(  # noqa: PLR0913 - one call names everything there is to say about the work
    function: Callable[[P], dict[str, Any]],
    parts: Sequence[P],
    *,
    workers: int,
    ledger: Path,
    what: str,
    unit: str,
    sizes: Sequence[float],
) -> list[dict[str, Any]]:
    """Run ``function`` on every part and return the results (as JSON gives them back) in the order of ``parts``.

    ``function`` is a top-level function; its files must be complete when it returns. ``parts`` have a ``repr`` that
    says everything their result depends on: it identifies them in ``ledger``, a directory of one record per finished
    part. ``workers`` processes are used (this one alone when 1). ``what``, ``unit`` and ``sizes`` (one per part)
    are for the progress display. Raises what ``function`` raises, and ``DeepenError`` when a worker dies.
    """
    assert len(sizes) == len(parts), "one size per part"
    keys = [_key(function, part) for part in parts]
    results = {index: result for index, key in enumerate(keys) if (result := _recorded(ledger, index, key)) is not None}
    missing = [index for index in range(len(parts)) if index not in results]
    with track(what, sum(sizes), unit, done=sum(sizes[index] for index in results)) as tracker:

        def commit(index: int, result: dict[str, Any]) -> None:
            text = json.loads(json.dumps(result))
            write_json(_record_path(ledger, index), {"key": keys[index], "result": text})
            results[index] = text
            tracker.advance(sizes[index])

        if workers <= 1 or len(missing) <= 1:
            for index in missing:
                commit(index, function(parts[index]))
        else:
            missing.sort(key=lambda index: (-sizes[index], index))  # the longest part must not come last
            jobs = [(index, parts[index]) for index in missing]
            run_in_workers(function, jobs, workers=min(workers, len(jobs)), commit=commit)
    return [results[index] for index in range(len(parts))]


def clear_ledger(ledger: Path) -> None:
    """Forget all finished parts: the last thing a stage does before it writes its manifest."""
    if ledger.exists():
        shutil.rmtree(ledger)


def _record_path(ledger: Path, index: int) -> Path:
    return ledger / f"{index:05d}.json"


def _key(function: Callable[..., Any], part: Any) -> str:
    text = repr(part)
    assert " object at 0x" not in text, f"a part needs a repr that says what it is, not {text}"
    return xxhash.xxh3_128_hexdigest(f"{function.__module__}.{function.__qualname__}\0{text}".encode())


def _recorded(ledger: Path, index: int, key: str) -> dict[str, Any] | None:
    """The recorded result of a part, unless it belongs to other work or cannot be read (then the part runs again)."""
    try:
        record = json.loads(_record_path(ledger, index).read_text())
        return dict(record["result"]) if record["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
