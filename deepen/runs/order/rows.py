"""What is in which step: the training order opened for `show`, `trace` and the report, without torch.

Changes of mixture that were appended while training went on are laid over the order, as training itself does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepen.errors import DamageError, RunError
from deepen.formats.files.arrays import Array
from deepen.formats.files.json_text import ANEW
from deepen.formats.manifest import Artifact
from deepen.formats.tokens.order import Order, appended_files, row_of, source_of
from deepen.formats.tokens.packs import SourceFiles
from deepen.runs.directory import check_is_run, finished_stages, stage_directory


@dataclass(frozen=True)
class Piece:
    """A piece of one document inside a packed row."""

    document: str
    at: int
    """Position in the row where it begins."""
    start: int
    """Position in the document's tokens where it begins."""
    document_tokens: int
    """Tokens of the whole document."""
    tokens: Array
    has_loss: Array
    """bool per token: whether what follows it is predicted."""


@dataclass(frozen=True)
class OpenedOrder:
    """A run's order, packs and shards."""

    order: Order
    sources: list[str]
    mix: Path
    tokenize: Path
    appended: tuple[Path, ...] = ()
    """Files of later changes that are laid over the order."""
    _files: dict[str, SourceFiles] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Path:
        """Folder of the run's tokenizer."""
        return self.tokenize / "tokenizer"

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the order."""
        return self.order.step_of_batch(self.order.num_batches - 1)

    def files(self, source: str) -> SourceFiles:
        """The files of a source, opened once."""
        if source not in self._files:
            self._files[source] = SourceFiles.open(source, self.tokenize, self.mix)
        return self._files[source]

    def rows_of(self, step: int) -> list[tuple[str, int]]:
        """Source and row number of every row of optimizer step ``step`` (from 1)."""
        rows = self.order.batch(self.order.batch_of_step(step))
        return [(self.sources[source], int(row)) for source, row in zip(source_of(rows), row_of(rows), strict=True)]

    def pieces(self, source: str, row: int, sequence_length: int, *, isolated: bool) -> Iterator[Piece]:
        """The pieces of documents in one row of a source, as the model sees them."""
        files = self.files(source)
        listed = [piece for piece in files.packs.row(row).tolist() if piece[2]]
        at = 0
        for number, (sequence, start, length) in enumerate(listed):
            inside = min(length, sequence_length - at)
            if inside <= 0:
                return
            total = int(files.shard.lengths[sequence])
            num_labels = min(inside, total - start - 1)
            has_loss = np.arange(inside) < num_labels
            flags = files.trained.read(sequence, start + 1, num_labels)
            if flags is not None:
                has_loss[:num_labels] = flags != 0
            if not isolated and length == inside and number + 1 < len(listed):
                following, first, _ = listed[number + 1]
                first_flag = files.trained.read(following, first, 1)
                has_loss[-1] = first_flag is None or bool(first_flag[0])
            tokens = np.asarray(files.shard.read(sequence, start, inside))
            yield Piece(files.document_ids[sequence], at, start, total, tokens, has_loss)
            at += inside


def open_order(run: Path) -> OpenedOrder:
    """Open what `mix` and `tokenize` of ``run`` made; raises ``RunError`` when they are not finished."""
    check_is_run(run)
    stages: dict[str, Artifact] = finished_stages(run)
    for name in ("tokenize", "mix"):
        if name not in stages:
            raise RunError(f"`{run}` has no finished {name}", hint="run it up to there: `deepen mix RECIPE`")
    mix = stages["mix"]
    train = stages["train"].path if "train" in stages else stage_directory(run, "train")
    appended = tuple(appended_files(train / "order"))
    order = Order.open(mix.path, *appended)
    return OpenedOrder(order, list(order.sources), mix.path, stages["tokenize"].path, appended)


def open_tokenizer(folder: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a folder; raises ``DamageError`` when its file is missing or damaged."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # that library raises nothing more special
        raise DamageError(f"`{path}` cannot be read: {error}", hint=ANEW) from error


def show_batch(run: Path, step: int) -> Iterator[dict[str, Any]]:
    """The batch of optimizer step ``step`` decoded: per row its source, padding and pieces of documents."""
    opened = open_order(run)
    if not 1 <= step <= opened.num_steps:
        raise RunError(f"there is no step {step}: the order has {opened.num_steps} steps")
    tokenizer = open_tokenizer(opened.tokenizer)
    segment = opened.order.segment_of(opened.order.batch_of_step(step))
    for place, (source, row) in enumerate(opened.rows_of(step)):
        pieces = list(opened.pieces(source, row, segment.sequence_length, isolated=segment.isolated))
        num_tokens = sum(len(piece.tokens) for piece in pieces)
        yield {
            "step": step,
            "row": place,
            "source": source,
            "tokens": num_tokens,
            "loss_tokens": sum(int(piece.has_loss.sum()) for piece in pieces),
            "padding": segment.sequence_length - num_tokens,
            "isolated": segment.isolated,
            "segments": [_described(piece, tokenizer) for piece in pieces],
        }


def _described(piece: Piece, tokenizer: Any) -> dict[str, Any]:
    text = tokenizer.decode(piece.tokens.tolist(), skip_special_tokens=False)
    return {
        "document": piece.document,
        "positions": [piece.at, piece.at + len(piece.tokens)],
        "start": piece.start,
        "tokens": len(piece.tokens),
        "document_tokens": piece.document_tokens,
        "without_loss": [[piece.at + begin, piece.at + end] for begin, end in runs_of(~piece.has_loss)],
        "text": text,
    }


def runs_of(flags: Array) -> list[tuple[int, int]]:
    """Where ``flags`` are set, as ranges (first, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def shares_over_time(opened: OpenedOrder, most_points: int) -> tuple[list[int], dict[str, list[float]]]:
    """Share of each source in the tokens of equal parts of the run, and the step at which each part ends."""
    order = opened.order
    tokens_of_row = [opened.files(source).packs.tokens_per_row for source in opened.sources]
    edges = sorted({round(point * order.num_batches / most_points) for point in range(most_points + 1)})
    steps: list[int] = []
    shares: dict[str, list[float]] = {source: [] for source in opened.sources}
    for first, end in zip(edges, edges[1:], strict=False):
        totals = np.zeros(len(opened.sources))
        for _, _, ids in order.blocks(first, end):
            sources, rows = source_of(ids), row_of(ids)
            for index, tokens in enumerate(tokens_of_row):
                totals[index] += tokens[rows[sources == index]].sum()
        steps.append(order.step_of_batch(end - 1))
        for index, source in enumerate(opened.sources):
            shares[source].append(float(totals[index] / max(1.0, totals.sum())))
    return steps, shares
