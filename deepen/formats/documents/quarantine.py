"""Lists of documents that made a training stumble: JSON lines that a later recipe names in ``curate.quarantine``.

Only ``id`` is read again; the rest says to people why. Ids come from a source's name and the place in its files, so a
list fits a run that has the same source under the same name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepen.errors import SourceError
from deepen.formats.training.decisions import Decision

_ID = re.compile(r"[0-9a-f]{32}")


def quarantine_records(decisions: Sequence[Decision]) -> Iterator[dict[str, Any]]:
    """One record for each document that a decision names, with the first that did and how many there are."""
    found: dict[str, dict[str, Any]] = {}
    for decision in decisions:
        for name in decision.documents if decision.cannot is None else ():
            source, _, document = name.rpartition(":")
            first = {"id": document, "source": source, "step": decision.step, "action": decision.action}
            record = found.setdefault(name, first | {"reason": decision.reason, "times": 0})
            record["times"] += 1
    yield from found.values()


def read_quarantine(paths: Sequence[Path]) -> frozenset[str]:
    """The document ids in these files; raises ``SourceError`` naming the line that has none."""
    ids = set()
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"`{path}` cannot be read: {error}", hint="`deepen quarantine RUN` makes one") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                ids.add(_id_of(path, number, line))
    return frozenset(ids)


def _id_of(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)["id"]
    except (ValueError, TypeError, KeyError):
        found = None
    if not isinstance(found, str) or not _ID.fullmatch(found):
        raise SourceError(
            f"`{path}`, line {number}: no document id of 32 hexadecimal digits under `id`",
            hint="give what `deepen quarantine RUN` prints",
        )
    return found
