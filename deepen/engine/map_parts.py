"""Map a function over parts, in local processes or on Ray, resuming at the first part that is not finished.

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
from deepen.errors import DeepenError
from deepen.formats.files.atomic import write_json
from deepen.formats.workers import Share, Workers, as_workers
from deepen.progress import track

P = TypeVar("P")
Commit = Callable[[int, dict[str, Any]], None]


def map_parts(  # noqa: PLR0913 - one call names everything there is to say about the work
    function: Callable[[P], dict[str, Any]],
    parts: Sequence[P],
    *,
    workers: int | Workers,
    ledger: Path,
    what: str,
    unit: str,
    sizes: Sequence[float],
) -> list[dict[str, Any]]:
    """Run ``function`` on every part and return the results (as JSON gives them back) in the order of ``parts``.

    ``function`` is a top-level function; its files must be complete when it returns. ``parts`` have a ``repr`` that
    says everything their result depends on: it identifies them in ``ledger``, a directory of one record per finished
    part. ``workers`` processes are used (this one alone when 1), or what ``Workers`` says: with a share only the parts
    of this share are run here, and ``SharePendingError`` is raised unless all others are finished too. ``what``,
    ``unit`` and ``sizes`` (one per part) are for the progress display. Raises what ``function`` raises, and
    ``DeepenError`` when a worker dies.
    """
    assert len(sizes) == len(parts), "one size per part"
    keys = [_key(function, part) for part in parts]
    places = as_workers(workers)
    results = _results(ledger, keys)
    missing = [index for index in range(len(parts)) if index not in results]
    share = places.share if missing and places.share is not None and not places.share.alone else None
    own = missing if share is None else _own_parts(missing, sizes, share)
    if share is not None:
        share.leave()
    with track(what, sum(sizes), unit, done=sum(sizes[index] for index in results)) as tracker:

        def commit(index: int, result: dict[str, Any]) -> None:
            # As a rerun will read it (tuples become lists): what follows cannot depend on whether there was a kill.
            text = json.loads(json.dumps(result))
            # The part's files are complete by now. A kill before this line costs the part, one behind it nothing.
            write_json(_record_path(ledger, index), {"key": keys[index], "result": text})
            results[index] = text
            tracker.advance(sizes[index])

        if places.processes > 1 or places.ray is not None:
            own.sort(key=lambda index: (-sizes[index], index))  # the longest part must not come last
        _run(function, [(index, parts[index]) for index in own], places, commit)
    if share is not None:
        results = _after_own_share(ledger, keys, share, what)
    return [results[index] for index in range(len(parts))]


def _run(function: Callable[[P], dict[str, Any]], jobs: list[tuple[int, P]], places: Workers, commit: Commit) -> None:
    if places.ray is not None and jobs:
        from deepen.engine.on_ray import run_on_ray

        run_on_ray(function, jobs, address=places.ray, commit=commit)
    elif places.processes <= 1 or len(jobs) <= 1:
        for index, part in jobs:
            commit(index, function(part))
    else:
        run_in_workers(function, jobs, workers=min(places.processes, len(jobs)), commit=commit)


def _own_parts(missing: list[int], sizes: Sequence[float], share: Share) -> list[int]:
    """Every ``count``-th of all parts by falling size, as far as they are not finished."""
    # Dealt like cards over all parts, not over the missing ones: shares that start later agree on who does what.
    dealt = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))[share.number - 1 :: share.count]
    return sorted(set(dealt) & set(missing))


def _after_own_share(ledger: Path, keys: Sequence[str], share: Share, what: str) -> dict[int, dict[str, Any]]:
    """All results, if all shares are finished and this one is the one that goes on."""
    num_missing = len(keys) - len(_results(ledger, keys))
    if num_missing:
        raise SharePendingError(
            f"{what}: share {share.number} of {share.count} is finished, {num_missing} parts of others are not; "
            "the share that ends last goes on"
        )
    # Two shares may see all parts finished at once: only the one that gets the lock goes on, and looks again under it.
    if not share.come_back() or len(results := _results(ledger, keys)) < len(keys):
        raise SharePendingError(f"{what}: share {share.number} of {share.count} is finished; another one goes on")
    share.alone = True
    return results


class SharePendingError(DeepenError):
    """Not a fault: this share of a job array has done its work, and what follows is up to another process."""

    exit_code = 0


def clear_ledger(ledger: Path) -> None:
    """Forget all finished parts: the last thing a stage does before it writes its manifest."""
    if ledger.exists():
        shutil.rmtree(ledger)


def _record_path(ledger: Path, index: int) -> Path:
    return ledger / f"{index:05d}.json"


def _key(function: Callable[..., Any], part: Any) -> str:
    text = repr(part)
    # An address would differ in every process.
    assert " object at 0x" not in text, f"a part needs a repr that says what it is, not {text}"
    return xxhash.xxh3_128_hexdigest(f"{function.__module__}.{function.__qualname__}\0{text}".encode())


def _results(ledger: Path, keys: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Results of the finished parts, by index."""
    found = ((index, _recorded(ledger, index, key)) for index, key in enumerate(keys))
    return {index: result for index, result in found if result is not None}


def _recorded(ledger: Path, index: int, key: str) -> dict[str, Any] | None:
    """The recorded result of a part, unless it belongs to other work or cannot be read (then the part runs again)."""
    try:
        record = json.loads(_record_path(ledger, index).read_text())
        # Other work under the same number: the part runs again.
        return dict(record["result"]) if record["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
