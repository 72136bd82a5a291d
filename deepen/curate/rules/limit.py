"""Not more than so much of a source."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Discriminator, Field, Tag, model_validator

from deepen.curate.passes.corpus import Corpus
from deepen.curate.step import CorpusStep, Drops
from deepen.errors import Problem
from deepen.settings import BYTES_PER_TOKEN, Count

_Number = Annotated[Count, Field(gt=0)]
_Most = Annotated[
    Annotated[_Number, Tag("one")] | Annotated[dict[str, _Number], Tag("keys"), Field(min_length=1)],
    Discriminator(lambda value: "keys" if isinstance(value, dict) else "one"),
]


class Limit(CorpusStep):
    """Keep at most so many documents or tokens of every source, or of those named.

    What goes is ``beyond_limit`` (value: the document's place).
    """

    use: Literal["limit"] = "limit"
    documents: _Most | None = None
    """Most documents of a source: one number for each of them, or ``{SOURCE: NUMBER}`` for those named."""
    tokens: _Most | None = None
    """Most tokens of a source, counted as UTF-8 bytes / 4, for each or for those named, as above. What would pass it
    goes, and all after it."""
    by: Literal["content", "order"] = "content"
    """Which documents stay: those of smallest content hash, a fair sample that stays nearly the same when the source
    grows; or the first in the order of the files."""

    @model_validator(mode="after")
    def _limits_something(self) -> Limit:
        if self.documents is None and self.tokens is None:
            raise ValueError("give `documents` or `tokens`")
        return self

    def problems(self, sources: Collection[str] | None) -> Iterator[Problem]:
        """Limits of sources that are not there."""
        for key, most in (("documents", self.documents), ("tokens", self.tokens)):
            for name in sorted(set(most) - set(sources)) if isinstance(most, dict) and sources is not None else ():
                remedy = f"sources of this recipe: {', '.join(sources or ())}"
                yield Problem(key, "limits no source of this recipe", remedy, name)

    def apply(self, corpus: Corpus, alive: npt.NDArray[np.bool_]) -> Drops:
        """What is beyond the limit, source by source."""
        dropped: list[npt.NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        places: list[npt.NDArray[np.float64]] = [np.zeros(0)]
        for source in np.unique(corpus.source[alive]):
            own = np.flatnonzero(alive & (corpus.source == source))
            if self.by == "content":
                own = corpus.by_content(own)
            num_kept = self._num_kept(corpus.names[source], corpus.index["num_bytes"][own])
            dropped.append(own[num_kept:])
            places.append(np.arange(num_kept + 1, len(own) + 1, dtype=np.float64))
        documents = np.concatenate(dropped)
        ascending = np.argsort(documents)
        return Drops("beyond_limit", documents[ascending], np.concatenate(places)[ascending])

    def _num_kept(self, source: str, num_bytes: npt.NDArray[np.int64]) -> int:
        """How many of a source's documents of these sizes are within the limits."""
        documents, tokens = _of(source, self.documents), _of(source, self.tokens)
        kept = len(num_bytes) if documents is None else min(documents, len(num_bytes))
        if tokens is None:
            return kept
        return min(kept, int(np.searchsorted(np.cumsum(num_bytes), tokens * BYTES_PER_TOKEN, side="right")))


def _of(source: str, most: int | dict[str, int] | None) -> int | None:
    return most.get(source) if isinstance(most, dict) else most
