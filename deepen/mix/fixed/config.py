"""Settings of `mix.fixed_rows`: rows that another tool has already prepared as token ids, and what can be wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from deepen.errors import DeepenError, Problem
from deepen.settings import Settings

BASE = "base"
"""The value of ``tokenizer`` that means the base's own."""


class FixedRows(Settings):
    """Prepared token ids that are trained as they are, each row by itself."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_]*$")]
    """Short name in small letters, digits and underscores, as of a source; must differ from all names in `ingest`."""
    role: Literal["domain", "replay"]
    """domain: what the model is to learn; replay: what reminds it of what it knew."""
    path: str
    """A folder that `datasets` wrote with `save_to_disk` (as Colossal-LLaMA's preparation does), or a file or glob of
    `.arrow` or `.parquet` files: columns `input_ids` and, where not every token is a target, `labels`."""
    tokenizer: str
    """Whose ids they are: `base`, or the folder or hub id of the tokenizer, which is compared with the run's."""


def fixed_problems(
    fixed: Sequence[FixedRows], sources: Sequence[str], *, lengths: int, order: str
) -> Iterator[Problem]:
    """What is wrong with fixed rows beside ``sources`` (names), with so many ``lengths`` and such an ``order``."""
    taken = set(sources)
    for index, rows in enumerate(fixed):
        key = f"mix.fixed_rows[{index}]"
        if rows.name in taken:
            yield Problem(f"{key}.name", "is the name of another source", "give it a name of its own", rows.name)
        taken.add(rows.name)
        yield from _file_problems(f"{key}.path", rows.path)
        yield from _tokenizer_problems(f"{key}.tokenizer", rows.tokenizer)
    if fixed and order != "shuffled":
        message = "Megatron's order cuts and joins documents, and fixed rows stay as they are"
        yield Problem("mix.fixed_rows", message, "leave it out, or set mix.order: shuffled")
    if fixed and lengths > 1:
        message = "have one length, and mix.sequence_length has several"
        yield Problem("mix.fixed_rows", message, "give one mix.sequence_length, or leave the fixed rows out")


def _file_problems(key: str, path: str) -> Iterator[Problem]:
    from deepen.mix.fixed.files import check_columns, fixed_files

    if "://" in path:
        yield Problem(key, "fixed rows are read from the disk", "copy the files here and give their folder", path)
        return
    try:
        check_columns(fixed_files(path)[0])
    except DeepenError as error:
        yield Problem(key, error.message, error.hint or "", path)


def _tokenizer_problems(key: str, tokenizer: str) -> Iterator[Problem]:
    folder = Path(tokenizer).expanduser()
    looks_like_path = tokenizer.startswith((".", "/", "~")) or tokenizer.count("/") != 1
    if tokenizer == BASE or (not looks_like_path and not folder.exists()):
        return
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        remedy = "give `base`, a folder with tokenizer.json or tokenizer_config.json, or a hub id"
        yield Problem(key, "is no tokenizer's folder", remedy, tokenizer)
