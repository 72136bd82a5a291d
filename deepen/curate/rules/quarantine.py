"""Leaving out documents by their id: those that an earlier training stumbled over."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from deepen.curate.batch.columns import Batch
from deepen.curate.step import BatchStep, Judgement
from deepen.errors import Problem, SourceError
from deepen.formats.documents.quarantine import read_quarantine
from deepen.settings import Many


class Quarantine(BatchStep):
    """Drop the documents that lists name (``quarantined``), before any other step looks at them."""

    use: Literal["quarantine"] = "quarantine"
    files: Many[str]
    """What `deepen quarantine` printed."""

    def problems(self, sources: Collection[str] | None) -> Iterator[Problem]:
        """Lists that cannot be read."""
        for number, file in enumerate(self.files):
            try:
                read_quarantine([Path(file).expanduser()])
            except SourceError as error:
                yield Problem(f"files[{number}]", error.message, error.hint or "", file)

    def judge(self, batch: Batch) -> Judgement:
        """Which documents of the batch are on a list."""
        listed = _ids(self.files)
        ids, _ = batch.names(np.arange(len(batch)))
        broken = np.array([0 if name in listed else -1 for name in ids.to_pylist()], dtype=np.int64)
        return Judgement({}, ("quarantined",), broken, np.ones(len(batch)))


@lru_cache(maxsize=4)
def _ids(files: tuple[str, ...]) -> frozenset[str]:
    return read_quarantine([Path(file).expanduser() for file in files])
