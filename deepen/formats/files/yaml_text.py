"""YAML as users write it, read with the line of every key.

The document is composed to nodes first, so that duplicate keys are all found (loaders keep the last one and say
nothing) and every later complaint can name its line. Numbers follow YAML 1.2: ``5e-5`` is a number, ``no`` is text.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from deepen.errors import Problem
from deepen.formats.files.atomic import write_bytes

Key = tuple[str | int, ...]


@dataclass
class YamlText:
    """Plain data read from a file, the place (``file:line``) of every key, and what was wrong with the text."""

    data: Any = None
    places: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, key: Key) -> str:
        """Where ``key`` was written; for a missing key, where its nearest enclosing mapping was."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, "")


def read_yaml(path: Path) -> YamlText:
    """Read a YAML file; syntax errors and duplicate keys come back as problems, not as exceptions."""
    result = YamlText()
    result.places[()] = path.name
    try:
        root = YAML(typ="safe", pure=True).compose(io.StringIO(path.read_text(encoding="utf-8")))
    except MarkedYAMLError as error:
        line = (error.problem_mark.line + 1) if error.problem_mark else 1
        remedy = "mend that line; text with a colon or a hash in it needs quotes"
        result.problems.append(Problem("", f"not valid YAML: {error.problem}", remedy, place=f"{path.name}:{line}"))
        return result
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text: {error.reason} at byte {error.start}"
        result.problems.append(Problem("", message, "save it as UTF-8", place=path.name))
        return result
    if root is not None:
        result.data = _plain(root, (), path.name, result)
    return result


def parse_value(text: str) -> Any:
    """A value given on the command line, read by the rules of YAML."""
    return YAML(typ="safe", pure=True).load(text)


def _plain(node: Node, key: Key, name: str, result: YamlText) -> Any:
    # A mapping's key was noted before: its line, not its value's.
    result.places.setdefault(key, f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode):
        return [_plain(item, (*key, index), name, result) for index, item in enumerate(node.value)]
    assert isinstance(node, MappingNode), f"unexpected YAML node {node!r}"
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        part = str(key_node.value)
        place = f"{name}:{key_node.start_mark.line + 1}"
        if part in values:
            first = result.places[(*key, part)].rpartition(":")[2]
            dotted = dotted_path((*key, part))
            problem = Problem(dotted, f"given twice (first on line {first})", "keep one of the two", place=place)
            result.problems.append(problem)
            continue
        result.places[(*key, part)] = place
        values[part] = _plain(value_node, (*key, part), name, result)
    return values


def _scalar(node: ScalarNode) -> Any:
    if node.style in ("'", '"', "|", ">"):  # quoted: text, whatever it looks like
        return node.value
    value = parse_value(node.value) if node.value.strip() else None
    return node.value if isinstance(value, date) else value  # dates stay text


def dotted_path(key: Key) -> str:
    """``("curate", "steps", 0, "min")`` as ``curate.steps[0].min``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def set_value(result: YamlText, assignment: str) -> None:
    """Apply one ``--set key.path=value``; lists are addressed by index, missing mappings are made."""
    dotted, equals, text = assignment.partition("=")
    parts: list[str | int] = [int(part) if part.isdigit() else part for part in dotted.strip().split(".")]
    if not equals or not dotted.strip():
        problem = Problem(
            assignment, "expected `key=value`", "for example --set train.learning_rate=2e-5", place="--set"
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
        result.problems.append(Problem(dotted, "there is no such place to set", place="--set"))
        return
    except YAMLError as error:
        what = getattr(error, "problem", None) or "cannot be read"
        problem = Problem(dotted, f"not a value of YAML: {what}", "put text with signs in it in quotes", text, "--set")
        result.problems.append(problem)
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
