"""YAML files as users write them, with the line of every key, and values given on the command line."""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from deepen.errors import Problem
from deepen.formats.files.atomic import write_bytes
from deepen.formats.files.yaml_values import Key, UnreadableError, compose, dotted_path, shortened

__all__ = [
    "Key",
    "UnreadableError",
    "YamlText",
    "dotted_path",
    "parse_value",
    "read_yaml",
    "set_value",
    "shortened",
    "write_yaml",
]

MAX_BYTES = 1_000_000
"""A recipe with ten thousand sources is smaller; a corpus given by mistake is not."""


@dataclass
class YamlText:
    """Plain data read from a file, the place (``file:line``) of every key, and what was wrong with the text."""

    data: Any = None
    places: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unread: set[Key] = field(default_factory=set)
    """Keys whose values could not be read; a problem says so, and nothing more is to be said about them."""

    def place(self, key: Key) -> str:
        """Where ``key`` was written; for a missing key, where its nearest enclosing mapping was."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, "")


def read_yaml(path: Path) -> YamlText:
    """Read a YAML file; whatever is wrong with the file or its text comes back as problems, not as exceptions."""
    result = YamlText()
    result.places[()] = path.name
    try:
        result.data, result.problems, result.unread = compose(_text_of(path), path.name, result.places)
    except UnreadableError as error:
        result.problems.append(error.problem(path.name))
    return result


def _text_of(path: Path) -> str:
    """The text of a file that can be a recipe; raises ``UnreadableError`` for one that cannot, however large it is."""
    if not path.is_file():  # a pipe would be waited for, and a device never ends
        raise UnreadableError("is no ordinary file", "give the path of a text file")
    with path.open("rb") as file:
        read = file.read(MAX_BYTES + 1)
    if len(read) > MAX_BYTES:
        message = f"too large: more than {MAX_BYTES:,} bytes, and this is read whole"
        raise UnreadableError(
            message, "is it the right file? Long lists of inputs can be written as one pattern such as `data/*.txt`"
        )
    wide = read.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return read.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = None if wide else read[: error.start].count(b"\n") + 1
        raise UnreadableError(
            f"not UTF-8 text: {error.reason} at byte {error.start}", "save it as UTF-8", line
        ) from error


def parse_value(text: str) -> Any:
    """A value given on the command line, read by the rules of a recipe; raises ``UnreadableError`` when it is none."""
    value, problems, _ = compose(text, "--set", {})
    if problems:
        raise UnreadableError(problems[0].message, problems[0].remedy)
    return value


def set_value(result: YamlText, assignment: str) -> None:
    """Apply one ``--set key.path=value``; lists are addressed by index, missing mappings are made."""
    dotted, equals, text = assignment.partition("=")
    # Messages write `sources[0]`, so that may be given back; nothing is longer than 999,999 entries.
    names = dotted.strip().replace("[", ".").replace("]", "").split(".")
    parts = [int(name) if re.fullmatch("[0-9]{1,6}", name) else name for name in names]
    if not equals or not all(names):
        problem = Problem(
            shortened(assignment), "expected `key=value`", "for example --set train.learning_rate=2e-5", place="--set"
        )
        result.problems.append(problem)
        return
    holder = result.data
    try:
        for part, following in zip(parts, parts[1:], strict=False):
            if isinstance(holder, dict):
                holder = holder.setdefault(part, {} if isinstance(following, str) else [])
            else:
                holder = holder[part]
        holder[parts[-1]] = parse_value(text)
    except (KeyError, IndexError, TypeError):
        result.problems.append(
            Problem(
                dotted,
                "there is no such place to set",
                "give a key and positions in lists that are there",
                place="--set",
            )
        )
        return
    except UnreadableError as error:
        remedy = error.remedy or "put text with signs in it in quotes"
        result.problems.append(Problem(dotted, error.message, remedy, shortened(text), "--set"))
        return
    for length in range(1, len(parts) + 1):
        result.places.setdefault(tuple(parts[:length]), "--set")
    result.places[tuple(parts)] = "--set"


def write_yaml(path: Path, value: Any, header: str = "") -> None:
    """Write plain data as YAML atomically, in the order given, under a comment ``header``."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    yaml.dump(value, stream)
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    write_bytes(path, (comment + stream.getvalue()).encode())
