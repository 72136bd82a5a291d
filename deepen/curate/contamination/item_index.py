"""Test items by their runs of words: an index of n-grams, and which items a document holds by which measure.

Runs of 13 words and of 8 words are looked for in every text of an item; an item whose longest text is shorter is looked
for whole, if it has enough words to be told from chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LONG, SHORT = 13, 8
LONG_RUN, SHORT_RUNS, PHRASE = "13_gram", "8_grams", "phrase"
"""The measures, the strongest first; curation drops a document for ``contaminated_`` and one of them."""
MEASURES = (LONG_RUN, SHORT_RUNS, PHRASE)


@dataclass(frozen=True)
class Grams:
    """All n-grams of one length in the items: ``known`` ascending, and for each place the texts that have it (CSR)."""

    n: int
    known: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    bitmap: npt.NDArray[np.uint64]

    def places(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Where in ``known`` the n-grams of ``words`` are, each once, ascending."""
        from deepen.curate.contamination.kernel import find_n_grams

        # Each once: a document may repeat an item.
        return np.unique(find_n_grams(words, self.n, self.bitmap, self.known))

    def first_owners(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """For each known n-gram among ``words`` the first text that has it, ascending."""
        return np.sort(self.owners[self.starts[self.places(words)]])

    def shared(self, words: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The texts that share n-grams with ``words``, ascending, and how many different ones each."""
        places = self.places(words)
        if len(places) == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        # One entry per shared run and text.
        owners = np.concatenate([self.owners[self.starts[place] : self.starts[place + 1]] for place in places])
        return np.unique(owners, return_counts=True)


@dataclass(frozen=True)
class Index:
    """The texts of all items with their n-grams."""

    items: npt.NDArray[np.int64]
    """Number of the item of each text."""
    grams: dict[int, Grams]
    num_short: npt.NDArray[np.int64]
    """Different 8-grams of each text."""

    def largest_share(self, words: npt.NDArray[np.uint64]) -> tuple[float, int]:
        """The largest share of a text's 8-grams that are among ``words``, and the text (-1: none has any)."""
        texts, shares = self._shares(words)
        if len(texts) == 0:
            return 0.0, -1
        best = int(np.argmax(shares))
        return float(shares[best]), int(texts[best])

    def _shares(self, words: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        if SHORT not in self.grams:
            return np.empty(0, np.int64), np.empty(0)
        texts, counts = self.grams[SHORT].shared(words)
        return texts, counts / self.num_short[texts]

    def found_in(self, words: npt.NDArray[np.uint64], min_share: float) -> dict[int, tuple[int, float]]:
        """By item that a document holds: the place of the measure in ``MEASURES`` and its value."""
        found: dict[int, tuple[int, float]] = {}
        for measure, text, value in self._matches(words, min_share):
            item = int(self.items[text])
            before = found.get(item)
            # The strongest measure counts.
            if before is None or measure < before[0] or (measure == before[0] and value > before[1]):
                found[item] = (measure, value)
        return found

    def _matches(self, words: npt.NDArray[np.uint64], min_share: float) -> Iterator[tuple[int, int, float]]:
        """``(place of the measure, text, value)`` of all that matches."""
        if LONG in self.grams:
            for text, count in zip(*self.grams[LONG].shared(words), strict=True):
                yield 0, int(text), float(count)
        for text, share in zip(*self._shares(words), strict=True):
            if share >= min_share:
                yield 1, int(text), float(share)
        for n in sorted(self.grams):
            if n < SHORT:
                for text in self.grams[n].shared(words)[0]:
                    yield 2, int(text), float(n)


def index_of(items: Iterable[Sequence[str]], phrase_words: int) -> Index:
    """Index items, each with its texts. An item without a text that can be looked for is not in it."""
    from deepen.curate.contamination.kernel import n_grams, word_hashes

    owners: list[int] = []
    num_short: list[int] = []
    found: dict[int, list[tuple[int, npt.NDArray[np.uint64]]]] = {}
    for number, item in enumerate(items):
        texts = [word_hashes(text) for text in item]
        longest = max((len(words) for words in texts), default=0)
        for words in texts:
            lengths = [n for n in (LONG, SHORT) if len(words) >= n]
            # A short answer of a long item ("the second one") is no phrase to look for: only the longest text is.
            if len(words) == longest < SHORT and longest >= phrase_words:
                lengths = [longest]
            for n in lengths:
                found.setdefault(n, []).append((len(owners), np.unique(n_grams(words, n))))
            if lengths:
                # Not how many runs, how many different ones.
                num_short.append(len(found[SHORT][-1][1]) if SHORT in lengths else 0)
                owners.append(number)
    grams = {n: _grams(n, texts) for n, texts in found.items()}
    return Index(np.array(owners, dtype=np.int64), grams, np.array(num_short, dtype=np.int64))


def _grams(n: int, texts: list[tuple[int, npt.NDArray[np.uint64]]]) -> Grams:
    from deepen.curate.contamination.kernel import bitmap_of

    every = np.concatenate([grams for _, grams in texts])
    owners = np.repeat([text for text, _ in texts], [len(grams) for _, grams in texts])
    order = np.argsort(every, kind="stable")  # stable: of equal runs the first text's stays first, see `first_owners`
    known, starts = np.unique(every[order], return_index=True)
    return Grams(n, known, np.append(starts, len(every)), owners[order], bitmap_of(known))
