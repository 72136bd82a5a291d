"""Settings of ``ingest``: where the text comes from and what each source is for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deepen.errors import Problem
from deepen.ingest.files import SUFFIXES, is_pattern, list_files
from deepen.settings import Count, Many, Settings, Share

Role = Literal["domain", "replay", "watch"]
Format = Literal["auto", "text", "markdown", "jsonl", "csv", "parquet"]


HUB = "hf://"
"""Beginning of a path inside a hub data set: ``hf://OWNER/NAME[@REVISION]/PATTERN``."""


class FieldName(Settings):
    """A value taken from each record instead of being the same for the whole source."""

    field: str
    """Name of the record's field."""


class Source(Settings):
    """One body of text."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_]*$")]
    """Short name in small letters, digits and underscores; files and counts are named after it."""
    role: Role
    """``domain``: what the model shall learn. ``replay``: general text trained along against forgetting.
    ``watch``: curated and scored, never trained, so that it shows forgetting without bias."""
    path: Annotated[str, Field(min_length=1)]
    """A file, a folder (with all its subfolders) or a glob such as ``data/**/*.jsonl``. Hidden files are left out."""
    format: Format = "auto"
    """How to read every file of the source; ``auto`` tells it from the suffix. ``.gz`` and ``.zst`` are unpacked."""
    text: str | None = None
    """Field that holds the text in jsonl, csv and parquet. Without it, the first of ``text``, ``content``, ``body``,
    ``article``, ``document`` that the source's first records have; the choice is printed."""
    category: str | FieldName | None = None
    """A label for every document, or ``{field: NAME}`` to take it from each record."""
    language: str | None = None
    """Language of the source, for example ``en``; None: not known."""
    licence: str | None = None
    """Licence of the source, kept with every document and named in the model card."""
    limit: Annotated[Count, Field(gt=0)] | None = None
    """Keep only the first so many documents, in the order of the files. A limited source is read by one process."""


class IngestConfig(Settings):
    """What to read."""

    sources: Annotated[Many[Source], Field(min_length=1)]
    """The bodies of text, in the order in which duplicates are decided: the first keeps its copy."""
    max_rejected: Share = 0.05
    """Largest share of a source's records that may be unusable; above it the stage stops with a table of reasons.
    Our choice: a few broken records are normal in exports, one in twenty is a wrong setting or a damaged file."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> IngestConfig:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"every source needs its own name; used more than once: {', '.join(twice)}")
        return self


def problems(config: IngestConfig) -> list[Problem]:
    """What the disk says against the settings: missing paths, globs without a match, files that nothing can read."""
    return [problem for index, source in enumerate(config.sources) for problem in problems_of(source, index)]


def problems_of(source: Source, index: int) -> list[Problem]:
    """What the disk says against one source, the one at ``index`` of the list."""
    problem = _problem(source)
    if problem is None:
        return []
    message, remedy = problem
    path = f"ingest.sources[{index}].path"
    return [Problem(path=path, message=f"source `{source.name}`: {message}", remedy=remedy, value=source.path)]


def _problem(source: Source) -> tuple[str, str] | None:
    if source.path.startswith(HUB):
        return None  # resolved to a local folder before anything is read
    if "://" in source.path:
        return (
            "remote paths cannot be read",
            "download the files and give their folder, or use `hf://OWNER/NAME/PATTERN`",
        )
    files = list_files(source.path, source.format)
    if not files and is_pattern(source.path):
        return "no file matches this glob", "`**` crosses folders, `*` does not; hidden files are left out"
    if not files:
        return "no such file, or an empty folder", "relative paths are looked up from the working directory"
    if all(file.format is None for file in files):
        suffixes = ", ".join(SUFFIXES)
        return "no file has a known suffix", f"set `format`, or name files that end in {suffixes} (also .gz, .zst)"
    return None
