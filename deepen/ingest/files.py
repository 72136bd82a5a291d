"""The files of a source: which they are, in what order, in which format, and what identifies their contents.

The order is that of the relative paths, so it does not depend on the file system; ids of documents are made from the
relative paths, so a corpus can be moved.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import BinaryIO

import xxhash

from deepen.formats.files.hashes import HashCache

SUFFIXES = {
    ".txt": "text", ".text": "text",
    ".md": "markdown", ".markdown": "markdown",
    ".rst": "rst",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx", ".docm": "docx",
    ".pptx": "pptx", ".pptm": "pptx",
    ".xlsx": "xlsx", ".xlsm": "xlsx",
    ".epub": "epub",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".feather": "arrow",
    ".warc": "warc", ".wet": "warc",
    ".zip": "zip",
    ".tar": "tar", ".tgz": "tar", ".tbz2": "tar", ".txz": "tar",
}  # fmt: skip
MEGATRON = "megatron"
"""Pairs of ``NAME.idx`` and ``NAME.bin``; named by the source, never told from a suffix."""
_MARKS = ("_SUCCESS", "_metadata", "_common_metadata", "_committed_*", "_started_*", "*.crc")
"""Files that other programs (Spark, Hadoop, Parquet writers) leave beside their data."""
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
TEXTS = ("text", "markdown", "rst")
"""Formats whose files are texts as they are."""
TABLES = ("jsonl", "json", "csv", "parquet", "arrow")
"""Formats whose records have named fields, one of which is the text."""
CONTAINERS = ("zip", "tar", "warc")
"""Formats that hold files of other formats; a source's ``format`` is that of the files inside."""


@dataclass(frozen=True)
class InputFile:
    """One file of a source: ``location`` is relative to the source's root; ``format`` None: no reader knows it."""

    path: str
    location: str
    format: str | None
    num_bytes: int

    def open(self) -> BinaryIO:
        """Its bytes as they are on the disk."""
        return Path(self.path).open("rb")


def list_files(path: str, file_format: str = "auto") -> list[InputFile]:
    """All files that ``path`` (file, folder or glob) names, sorted by location; hidden files are left out.

    ``file_format`` "auto" tells the format from the suffix. Returns nothing when the path does not exist.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - a glob is no path
    if file_format == MEGATRON and Path(f"{expanded}.idx").is_file():
        expanded += ".idx"
    if Path(expanded).is_dir():
        root, names = expanded, _walk(expanded)
    elif Path(expanded).exists():
        root, names = os.path.split(expanded)[0], iter([os.path.split(expanded)[1]])
    else:
        root = _fixed_folder(expanded)
        pattern = os.path.relpath(expanded, root) if root else expanded
        names = glob.iglob(pattern, root_dir=root or None, recursive=True)  # noqa: PTH207 - knows absolute patterns
    # A set, since `**` finds some twice.
    files = [_input_file(root, name, file_format) for name in set(names) if _is_readable_kind(Path(root, name))]
    if file_format == MEGATRON:
        files = [file for file in files if file.path.endswith(".idx")]
    return sorted(files, key=lambda file: file.location)


def companions(files: Sequence[InputFile], tokenizer: str | None) -> list[InputFile]:
    """What decides the contents of a source besides its files: the ``.bin`` of Megatron pairs and their tokenizer."""
    if tokenizer is None:
        return []
    pairs = [(str(Path(file.path).with_suffix(".bin")), file.location.removesuffix(".idx") + ".bin") for file in files]
    pairs.append((str(Path(tokenizer) / "tokenizer.json"), "tokenizer.json"))
    return [replace(_input_file("", path, MEGATRON), location=location) for path, location in pairs]


def is_pattern(path: str) -> bool:
    """Whether a path has wildcards."""
    return glob.has_magic(path)


def format_of(name: str) -> str | None:
    """The format that a file name's suffix tells (``notes.jsonl.zst``: jsonl), or None."""
    pure = PurePath(name.lower())
    if pure.suffix in COMPRESSIONS:
        pure = pure.with_suffix("")
    return SUFFIXES.get(pure.suffix)


def is_mark(name: str) -> bool:
    """Whether a file holds no data but tells something about files beside it."""
    return any(fnmatchcase(PurePath(name).name, pattern) for pattern in _MARKS)


def reading_format(name: str, file_format: str) -> str | None:
    """The format in which a file is read: ``file_format``, unless it is "auto" or the file is a container of files."""
    told = format_of(name)
    return told if file_format == "auto" or told in CONTAINERS else file_format


def _input_file(root: str, name: str, file_format: str) -> InputFile:
    path = Path(root, name)
    # A file name is bytes; what is not UTF-8 in it must still give a location that can be written down.
    location = os.fsencode(PurePath(name).as_posix()).decode("utf-8", "backslashreplace")
    return InputFile(
        str(path), location, reading_format(name, file_format), path.stat().st_size if path.exists() else 0
    )


def _is_readable_kind(path: Path) -> bool:
    """A file, or a link to nothing (its reader will reject it); not a folder, pipe or socket."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _walk(root: str) -> Iterator[str]:
    """Relative names of all files below ``root`` that are not hidden; linked folders are entered once."""
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # In place: so `os.walk` does not enter them.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        real = os.path.realpath(folder)  # links may lead in a circle
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        for name in names:
            if not name.startswith("."):
                yield os.path.relpath(Path(folder, name), root)


def _fixed_folder(pattern: str) -> str:
    """The longest leading folder of a glob that has no wildcard: the source's root."""
    parts = PurePath(pattern).parts
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return str(PurePath(*parts[:fixed])) if fixed else ""


def fingerprint_files(files: Sequence[InputFile], cache: Path) -> str:
    """Identity of files by location and content (xxh3-128); ``cache`` remembers hashes by size and time stamp."""
    known, digest = HashCache(cache), xxhash.xxh3_128()
    for file in files:
        try:
            mark = known.hash(Path(file.path))
        except OSError as error:
            mark = f"unreadable: {error.strerror}"  # its reader will reject it; readable again means another identity
        digest.update(f"{file.location}\0{mark}\n".encode())
    known.save()
    return digest.hexdigest()
