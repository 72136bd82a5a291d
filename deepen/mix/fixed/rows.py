"""Prepared rows of token ids become a shard of the mix: checked, without their padding, each row one document.

Nothing is cut, joined, curated or encoded again; ids keep their meaning because the tokenizer that made them is the
run's. Memory: a thousand rows, and about 30 bytes per row of the whole source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepen.engine.compiled import njit
from deepen.errors import SourceError
from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.documents.documents import document_id
from deepen.formats.files.arrays import Array, write_array
from deepen.formats.tokens.megatron import IndexedDatasetWriter, token_dtype
from deepen.formats.tokens.trained import TrainedWriter
from deepen.mix.fixed.config import BASE
from deepen.mix.fixed.files import IGNORED, Block, FixedFile, check_columns, fixed_files, read_blocks
from deepen.progress import readable

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class FixedPart:
    """One set of fixed rows to convert."""

    name: str
    role: str
    path: str
    tokenizer: str
    """``base``, or a local folder."""
    run_tokenizer: Path
    """Folder of the run's tokenizer."""
    vocabulary_size: int
    sequence_length: int
    out: Path


@dataclass
class _Shard:
    """The shard that is being written, and what was found so far."""

    writer: IndexedDatasetWriter
    mask: TrainedWriter
    tokenizer: Tokenizer
    rows_read: int = 0
    positions: int = 0
    empty_rows: int = 0
    untrained_rows: int = 0
    target_bytes: int = 0
    longest: int = 0
    too_long: tuple[Path, int, int] | None = None
    """File, row and length of the first row that does not fit."""
    halves: list[Array] = field(default_factory=list)
    """Ids of the rows."""


def write_fixed_rows(part: FixedPart) -> dict[str, Any]:
    """Write ``shards/NAME.bin``, ``.idx``, ``.trained`` (where something is masked) and ``documents/NAME.npy``.

    Returns ``files`` and ``counts``. Raises ``SourceError`` for rows of another tokenizer, ids outside the vocabulary,
    labels that are neither -100 nor the id at their position, and rows longer than ``part.sequence_length``; each
    message names file and row, counted from 0.
    """
    check_same_ids(part)
    files = fixed_files(part.path)
    prefix, ids = part.out / "shards" / part.name, part.out / "documents" / f"{part.name}.npy"
    ignored = {column for file in files for column in check_columns(file)}
    with (
        IndexedDatasetWriter(prefix, token_dtype(part.vocabulary_size), blocks=True) as writer,
        TrainedWriter(prefix, blocks=True) as mask,
    ):
        found = _Shard(writer, mask, _tokenizer(part.run_tokenizer))
        for file in files:
            for block in read_blocks(file):
                _check(part, file, block)
                _add(part, file, block, found)
        _refuse_long_rows(part, found)
    shape = (sum(map(len, found.halves)), 2)
    entry = write_array(ids, found.halves, shape=shape, dtype=np.uint64, root=part.out)
    entries = [one.model_copy(update={"path": f"shards/{one.path}"}) for one in (*writer.entries, *mask.entries)]
    return {
        "files": [one.model_dump() for one in (entry, *entries)],
        "counts": {
            "role": part.role,
            "files": len(files),
            "rows_read": found.rows_read,
            "empty_rows": found.empty_rows,
            "untrained_rows": found.untrained_rows,
            "documents": found.rows_read - found.empty_rows,
            "positions_read": found.positions,
            "tokens": writer.num_tokens,
            "padding_removed": found.positions - writer.num_tokens,
            "longest_row": found.longest,
            "targets": mask.num_targets,
            "target_bytes": found.target_bytes,
            "ignored_columns": sorted(ignored),
        },
    }


def check_same_ids(part: FixedPart) -> None:
    """Raise ``SourceError`` unless every token of the tokenizer that made the rows has the same id in the run's.

    A vocabulary that grew from it keeps all old ids, so it passes.
    """
    if part.tokenizer == BASE:
        return
    theirs, ours = _vocabulary(Path(part.tokenizer).expanduser()), _tokenizer(part.run_tokenizer).get_vocab()
    differing = sorted((number, token) for token, number in theirs.items() if ours.get(token) != number)
    if differing:
        number, token = differing[0]
        has = f"there it is {ours[token]}" if token in ours else "there is no such token there"
        raise SourceError(
            f"fixed rows `{part.name}`: `{part.tokenizer}` is not the tokenizer of this run: {len(differing):,} of its "
            f"{len(theirs):,} tokens differ, first {token!r} (id {number}; {has})",
            hint="prepare the rows with the base's tokenizer, or give their texts under `ingest.sources`",
        )


def _tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _vocabulary(folder: Path) -> dict[str, int]:
    """Ids of all tokens of a tokenizer in any form that transformers reads, such as Llama 2's ``tokenizer.model``."""
    if (folder / "tokenizer.json").is_file():
        return _tokenizer(folder).get_vocab()
    from deepen.model.weights.load import load_tokenizer

    return dict(load_tokenizer(folder).get_vocab())


def _check(part: FixedPart, file: FixedFile, block: Block) -> None:
    """Raise ``SourceError`` for the first id or label of a block that cannot be right."""
    wrong = np.flatnonzero((block.ids < 0) | (block.ids >= part.vocabulary_size))
    if len(wrong):
        raise SourceError(
            f"fixed rows `{part.name}`: {_place(file, block, wrong[0])}: id {block.ids[wrong[0]]} is outside the run's "
            f"vocabulary of {part.vocabulary_size:,}",
            hint="these rows were made with another tokenizer: prepare them with the base's",
        )
    if block.labels is None:
        return
    wrong = np.flatnonzero((block.labels != IGNORED) & (block.labels != block.ids))
    if len(wrong):
        at = int(wrong[0])
        raise SourceError(
            f"fixed rows `{part.name}`: {_place(file, block, at)}: the label is {block.labels[at]}, the id "
            f"{block.ids[at]}; a label is the id at the same position, or {IGNORED}",
            hint="labels must not be shifted: the model compares each with the prediction before it",
        )


def _place(file: FixedFile, block: Block, at: int) -> str:
    row = int(np.searchsorted(block.ends, at, side="right"))
    begin = int(block.ends[row - 1]) if row else 0
    return f"`{file.path}`, row {block.first_row + row}, position {at - begin}"


def _add(part: FixedPart, file: FixedFile, block: Block, found: _Shard) -> None:
    """Append the rows of a block, without their padding."""
    flags = np.ones(len(block.ids), np.uint8) if block.labels is None else (block.labels != IGNORED).astype(np.uint8)
    lengths = _lengths(block.ids, flags, block.ends)
    begins = np.concatenate([[0], block.ends[:-1]])
    starts = np.repeat(begins, np.diff(block.ends, prepend=0))
    # The place of each token in its row, against the row's length.
    kept = np.arange(len(block.ids)) - starts < np.repeat(lengths, np.diff(block.ends, prepend=0))
    tokens, flags, filled = block.ids[kept], flags[kept], np.flatnonzero(lengths)
    too_long = np.flatnonzero(lengths > part.sequence_length)
    if len(too_long) and found.too_long is None:
        row = int(too_long[0])
        # Not raised yet: the message names the longest row of all, so that one change of the settings is enough.
        found.too_long = (file.path, block.first_row + row, int(lengths[row]))
    found.writer.add_documents(tokens, lengths[filled])
    found.mask.add(len(tokens), None if flags.all() else flags)  # None: no mask file as long as all is trained
    found.halves.append(
        pack_ids([document_id(part.name, f"{file.location}:{block.first_row + row}") for row in filled.tolist()])
    )
    found.rows_read += len(lengths)
    found.positions += len(block.ids)
    found.empty_rows += len(lengths) - len(filled)
    found.longest = max(found.longest, int(lengths.max(initial=0)))
    _count_targets(tokens, flags, np.cumsum(lengths[filled]), found)


def _count_targets(tokens: Array, flags: Array, ends: Array, found: _Shard) -> None:
    """Count UTF-8 bytes of the targets of each row, decoded; special tokens stand for no text."""
    # `np.split` gives one piece more than there are ends: what is behind the last row, which is nothing.
    rows = [
        ids[of == 1].tolist() for ids, of in zip(np.split(tokens, ends)[:-1], np.split(flags, ends)[:-1], strict=True)
    ]
    found.untrained_rows += sum(not row for row in rows)
    texts = found.tokenizer.decode_batch(rows, skip_special_tokens=True)
    found.target_bytes += sum(len(text.encode()) for text in texts)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _lengths(ids: Array, flags: Array, ends: Array) -> Array:
    """int64[rows]: tokens of each row before its padding: one id, two times or more, at the end, never a target.

    A single token there may be text, and padding or not, nothing at the end that is no target changes any loss.
    """
    lengths = np.empty(len(ends), np.int64)
    begin = 0
    for row in range(len(ends)):
        end = ends[row]
        at = end
        while at > begin and flags[at - 1] == 0 and ids[at - 1] == ids[end - 1]:
            at -= 1
        lengths[row] = (end if end - at < 2 else at) - begin
        begin = end
    return lengths


def _refuse_long_rows(part: FixedPart, found: _Shard) -> None:
    if found.too_long is not None:
        path, row, length = found.too_long
        raise SourceError(
            f"fixed rows `{part.name}`: `{path}`, row {row} has {length:,} tokens, and rows are never cut "
            f"(mix.sequence_length is {part.sequence_length:,})",
            hint=f"set mix.sequence_length to at least {found.longest}, or prepare shorter rows",
        )


def fixed_line(name: str, counts: dict[str, Any]) -> str:
    """What the summary says of one set of fixed rows."""
    line = (
        f"mix: `{name}`: {readable(counts['documents'])} fixed rows from {counts['files']} files, "
        f"{readable(counts['targets'])} of {readable(counts['tokens'])} tokens are targets; "
        "not curated, not checked against test items"
    )
    if counts["padding_removed"]:
        line += f"; {readable(counts['padding_removed'])} positions of padding removed"
    if counts["empty_rows"]:
        line += f"; {readable(counts['empty_rows'])} empty rows left out"
    if counts["untrained_rows"]:
        line += f"; {readable(counts['untrained_rows'])} rows have no target"
    if counts["ignored_columns"]:
        line += f"; columns not read: {', '.join(counts['ignored_columns'])}"
    return line
