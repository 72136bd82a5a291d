"""Settings of ``ingest``: where the text comes from and what each source is for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from deepen.errors import Problem
from deepen.ingest.encodings import is_text_encoding
from deepen.ingest.files import SUFFIXES, is_pattern, list_files
from deepen.settings import ExtentSetting, Many, Settings, Share

Role = Literal["domain", "replay", "watch"]
Format = Literal[
    "auto", "text", "markdown", "rst", "html", "pdf", "docx", "pptx", "xlsx", "epub",
    "csv", "json", "jsonl", "parquet", "arrow", "megatron",
]  # fmt: skip


HUB = "hf://"
"""Beginning of a path inside a hub data set: ``hf://OWNER/NAME[@REVISION]/PATTERN``."""


_SLASHES_OF_A_REPOSITORY = 3


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
    """A file, the prefix of a Megatron pair, a folder (with all its subfolders) or a glob such as ``data/**/*.jsonl``.
    Hidden files are left out. Addresses (``hf://OWNER/NAME/PATTERN``, ``s3://``, ``gs://``, ``https://``) are pinned
    and fetched first."""
    subset: str | None = None
    """Of a hub data set (``hf://OWNER/NAME``): the subset to read, told by its card or by the names of its files."""
    split: str | None = None
    """Of a hub data set: the split to read, for example ``train``, told by its card or by the names of its files."""
    format: Format = "auto"
    """How to read every file of the source; ``auto`` tells it from the suffix. Files packed with gzip, zstandard, bzip2
    or xz are unpacked; the members of zip and tar archives are read like files, by this format or their own suffix."""
    encoding: str = "auto"
    """Encoding of text, html, csv and json files, for example ``windows-1251``; ``auto`` tells it from the bytes: mark,
    UTF-8, declared charset, guess. What is not UTF-8 is noted with the document and counted."""
    delimiter: Annotated[str, Field(pattern='^[^"\r\n]$')] | None = None
    """What parts the fields of csv files, one character. None: comma, semicolon, tab or bar, whichever cuts the first
    rows as it cuts the header; a tab in tsv files."""
    extractor: Literal["trafilatura", "resiliparse"] = "trafilatura"
    """What takes the main text out of html pages: ``trafilatura`` leaves less of what stands around it, ``resiliparse``
    is several times faster."""
    passwords: Many[str] = ()
    """Tried on pdf files and zip archives that are encrypted; ``$NAME`` is read from the environment, so that the
    password is written down nowhere."""
    text: str | None = None
    """Field that holds the text in jsonl, json, csv, parquet and arrow. Without it, the first of ``text``, ``content``,
    ``body``, ``article``, ``document`` that the source's first records have; the choice is printed, and tables without
    it are left out by name. A path leads into objects: ``data.text``."""
    text_from: Many[Literal["list", "bytes"]] = ()
    """What is taken for text besides text: ``list``, a list of texts, which become its lines; ``bytes``, bytes in
    UTF-8. Without it such a field is none: nothing says that a list is a text."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer that made a Megatron pair (``format: megatron``), which must be named."""
    conversations: Literal["answers", "as_text"] | None = None
    """The records are conversations, instructions or prompts (``messages``, ShareGPT, Alpaca, Colossal-LLaMA). Of
    ``answers`` alone the words are trained, the rest is read; with ``as_text`` all words are trained, questions as well
    as answers. None: ``answers`` where the first records have such a shape and no text field; the choice is printed."""
    category: str | FieldName | None = None
    """A label for every document, or ``{field: NAME}`` to take it from each record."""
    language: str | None = None
    """Language of the source, for example ``en``; None: not known."""
    licence: str | None = None
    """Licence of the source, kept with every document and named in the model card."""
    limit: ExtentSetting | None = None
    """Keep only the first so much, in the order of the files: ``500 documents``, ``20 MB`` of text, or ``2B tokens``
    (UTF-8 bytes / 4, since no tokenizer is known yet); the document that reaches it is the last. At an address no more
    files are fetched than that takes. A limited source is read by one process."""

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, name: str) -> str:
        if name != "auto" and not is_text_encoding(name):
            raise ValueError(f"no text encoding is called `{name}`")
        return name

    @model_validator(mode="after")
    def _pairs_name_their_tokenizer(self) -> Source:
        if (self.format == "megatron") != (self.tokenizer is not None):
            raise ValueError("`format: megatron` and `tokenizer` go together: a pair does not say what made it")
        return self


class Extraction(Settings):
    """What one file may cost: time and memory when its text is extracted by a large library (html, pdf, office files,
    epub), and how far a packed one may expand."""

    seconds: Annotated[float, Field(gt=0)] = 60.0
    """CPU seconds for one file; more is the reject ``extraction_timeout``. Our choice: hundreds of pages of pdf take
    one or two seconds."""
    memory_MB: Annotated[int, Field(ge=100)] = 2000
    """Memory for one file in MB (Linux only); more is the reject ``extraction_memory``. Our choice."""
    expansion: Annotated[float, Field(ge=1)] = 100.0
    """How many times its packed size a compressed file or a member of an archive may expand to; more is the reject
    ``archive_bomb``. An archive as a whole may ten times as much. Our choice: text packs to a tenth, seldom to a
    fiftieth."""
    expansion_MB: Annotated[int, Field(ge=1)] = 100
    """Up to so many MB a file may expand whatever its packed size. Our choice."""


class IngestConfig(Settings):
    """What to read."""

    sources: Annotated[Many[Source], Field(min_length=1)]
    """The bodies of text, in the order in which duplicates are decided: the first keeps its copy."""
    max_rejected: Share = 0.05
    """Largest share of a source's records that may be unusable; above it the stage stops with a table of reasons.
    Our choice: a few broken records are normal in exports, one in twenty is a wrong setting or a damaged file."""
    max_lost: Share = 0.05
    """Largest share of a source's files, and of their bytes on the disk, that damage may keep from being read: how many
    records are lost with the rest of a file cannot be known. Above it the stage stops. Our choice, as above."""
    extraction: Extraction = Extraction()
    """Limits for one file of the formats that need large libraries. They decide which files are read, so they are part
    of the recipe."""

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
    """What the disk and the environment say against one source, the one at ``index`` of the list."""
    found: list[Problem] = []
    for name in (password[1:] for password in source.passwords if password.startswith("$")):
        if name not in os.environ:
            message = f"source `{source.name}`: the environment variable `{name}` is not set"
            found.append(Problem(f"ingest.sources[{index}].passwords", message, f"export {name}=...", f"${name}"))
    problem = _problem(source)
    if problem is not None:
        message, remedy = problem
        path = f"ingest.sources[{index}].path"
        found.append(Problem(path, f"source `{source.name}`: {message}", remedy, source.path))
    return found


def _problem(source: Source) -> tuple[str, str] | None:
    chosen = source.subset is not None or source.split is not None
    if chosen and (not source.path.startswith(HUB) or source.path.rstrip("/").count("/") != _SLASHES_OF_A_REPOSITORY):
        return "`subset` and `split` belong to a hub data set without a pattern", "`path: hf://OWNER/NAME`"
    if source.path.startswith(HUB):
        return None  # resolved to a local folder before anything is read
    if "://" in source.path:
        return _address_problem(source.path)
    files = list_files(source.path, source.format)
    if not files and is_pattern(source.path):
        return "no file matches this glob", "`**` crosses folders, `*` does not; hidden files are left out"
    if not files:
        return "no such file, or an empty folder", _where_it_ends(source.path)
    if all(file.format is None for file in files):
        suffixes = ", ".join(SUFFIXES)
        return (
            "no file has a known suffix",
            f"set `format`, or name files that end in {suffixes} (also .gz, .bz2, .xz, .zst)",
        )
    return None


def _where_it_ends(path: str) -> str:
    """How far a path goes that leads to nothing."""
    full = Path(path).expanduser()
    if full.is_dir():
        return "the folder is there: put files into it, or give another one"
    nearest = next(folder for folder in full.absolute().parents if folder.is_dir())
    if full.is_absolute():
        return f"the nearest folder that exists is `{nearest}`"
    return f"relative paths are looked up from the working directory; the nearest folder that exists is `{nearest}`"


def _address_problem(address: str) -> tuple[str, str] | None:
    from fsspec.registry import get_filesystem_class

    try:
        get_filesystem_class(address.partition("://")[0])
    except ImportError as error:
        return f"the client of this store is not installed: {error}", "pip install 'deepen[remote]'"
    except ValueError:
        return "no store is known by this name", "s3://, gs://, https:// or `hf://OWNER/NAME/PATTERN`; or a local path"
    return None
