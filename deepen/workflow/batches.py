"""Which documents are in which step: the training order opened for `show` and `trace`, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepen.errors import RunError
from deepen.formats.document_ids import read_document_ids
from deepen.formats.manifest import Artifact
from deepen.formats.megatron import IndexedDataset
from deepen.formats.order import Order, appended_files, row_of, source_of
from deepen.formats.packs import Packs
from deepen.workflow.stages import finished_stages, stage_directory


@dataclass(frozen=True)
class Segment:
    """A piece of one document inside a packed row."""

    document: str
    start: int
    """Position in the document's tokens where the piece begins."""
    tokens: np.ndarray[Any, Any]


@dataclass(frozen=True)
class OpenedOrder:
    """A run's order, packs and shards."""

    order: Order
    sources: list[str]
    mix: Path
    shards: Path

    @property
    def tokenizer(self) -> Path:
        """Folder of the run's tokenizer."""
        return self.shards / "tokenizer"

    def rows_of(self, step: int) -> list[tuple[str, int]]:
        """Source and row number of every row of optimizer step ``step`` (from 1)."""
        rows = self.order.batch(step - 1)
        return [(self.sources[source], int(row)) for source, row in zip(source_of(rows), row_of(rows), strict=True)]

    def segments(self, source: str, row: int) -> Iterator[Segment]:
        """The pieces of documents in one row of a source."""
        packs = Packs.open(self.mix, source)
        dataset = IndexedDataset.open(self.shards / "shards" / source)
        ids = read_document_ids(self.shards / "documents" / f"{source}.npy")
        for sequence, start, length in packs.row(row).tolist():
            yield Segment(ids[sequence], start, dataset[sequence][start : start + length])


def open_order(run: Path) -> OpenedOrder:
    """Open what `mix` and `tokenize` of ``run`` made; raises ``RunError`` when they are not finished."""
    stages: dict[str, Artifact] = finished_stages(run)
    if "mix" not in stages:
        raise RunError(f"`{run}` has no finished mix", hint="run it up to there: `deepen mix RECIPE`")
    mix = stages["mix"]
    train = stages["train"].path if "train" in stages else stage_directory(run, "train")
    order = Order.open(mix.path, *appended_files(train / "order"))
    return OpenedOrder(order, list(mix.counts["sources"]), mix.path, stages["tokenize"].path)


@dataclass(frozen=True)
class Visit:
    """One time a document (or a part of it) is in a batch."""

    step: int
    row: int
    source: str
    start: int
    tokens: int


def trace(run: Path, document: str) -> list[Visit]:
    """Every step of ``run`` in which the document with this id (or unique beginning of an id) is trained."""
    opened = open_order(run)
    for index, source in enumerate(opened.sources):
        ids = read_document_ids(opened.shards / "documents" / f"{source}.npy")
        sequences = [sequence for sequence, known in enumerate(ids) if known.startswith(document.lower())]
        if len({ids[sequence] for sequence in sequences}) > 1:
            raise RunError(f"`{document}` is the beginning of {len(sequences)} document ids; give more digits")
        if sequences:
            return _visits(opened, index, source, sequences[0])
    raise RunError(
        f"no document with id `{document}` is in the training shards of `{run}`",
        hint="it may be held out or dropped: look with `deepen show RUN/curate --dropped all`",
    )


def _visits(opened: OpenedOrder, index: int, source: str, sequence: int) -> list[Visit]:
    packs = Packs.open(opened.mix, source)
    pieces = packs.rows_with(sequence)  # {row: [(start, length), ...]}
    visits = []
    for batch in range(opened.order.num_batches):
        rows = opened.order.batch(batch)
        mine = np.flatnonzero(source_of(rows) == index)
        for position in mine[np.isin(row_of(rows[mine]), list(pieces))]:
            for start, length in pieces[int(row_of(rows[position]))]:
                visits.append(Visit(batch + 1, int(position), source, start, length))
    return visits


def shares_over_time(opened: OpenedOrder, most_points: int) -> tuple[list[int], dict[str, list[float]]]:
    """Share of each source in the tokens up to a step, at no more than ``most_points`` steps."""
    tokens_of_row = [Packs.open(opened.mix, source).tokens_per_row for source in opened.sources]
    totals = np.zeros(len(opened.sources))
    stride = max(1, opened.order.num_batches // most_points)
    steps: list[int] = []
    shares: dict[str, list[float]] = {source: [] for source in opened.sources}
    for batch in range(opened.order.num_batches):
        rows = opened.order.batch(batch)
        for index, tokens in enumerate(tokens_of_row):
            totals[index] += tokens[row_of(rows[source_of(rows) == index])].sum()
        if batch % stride == 0 or batch == opened.order.num_batches - 1:
            steps.append(batch + 1)
            for index, source in enumerate(opened.sources):
                shares[source].append(float(totals[index] / totals.sum()))
    return steps, shares
