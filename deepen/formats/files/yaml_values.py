"""YAML text to plain data, within bounds: whatever the text is, reading it ends soon and in little memory.

Built from the parser's events and not by a loader, for four reasons: duplicate keys are all found (loaders keep the
last and say nothing); every complaint can name its line; what aliases multiply is counted before it is made; and depth
and number of values are bounded. Numbers follow YAML 1.2: ``5e-5`` is a number, ``no`` is text. Dates stay text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode

from deepen.errors import Problem

Key = tuple[str | int, ...]

_MAX_VALUES = 30_000
_MAX_LINES = 100_000
_MAX_KEYS = 2_000
_MAX_DEPTH = 40
_MAX_KEY = 200
_MAX_DIGITS = 400
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PLAIN_INTEGER = re.compile("-?(0|[1-9][0-9]{0,17})")
_DEEP = re.compile(r"(?:[\[{]\s*){80}")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_NUMBERS_AND_WORDS = tuple(_TAG + kind for kind in ("int", "float", "bool", "null"))


@dataclass
class UnreadableError(Exception):
    """Text that cannot be read on: what is wrong, what to do, and on which line (from 1)."""

    message: str
    remedy: str = ""
    line: int | None = None
    key: Key = ()

    def problem(self, name: str) -> Problem:
        """The same as a problem of the file ``name``."""
        place = name if self.line is None else f"{name}:{self.line}"
        return Problem(dotted_path(self.key), self.message, self.remedy, place=place)


def dotted_path(key: Key) -> str:
    """``("curate", "steps", 0, "min")`` as ``curate.steps[0].min``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def shortened(text: str, most: int = 60) -> str:
    """Text for a message: on one line, and not longer than ``most`` characters."""
    text = " ".join(text[: 10 * most].split())
    return text if len(text) <= most else text[: most - 3] + "..."


def compose(text: str, name: str, places: dict[Key, str]) -> tuple[Any, list[Problem], set[Key]]:
    """The data in ``text``, what is wrong with single keys, and the keys whose values could not be read at all.

    ``places`` gets ``name:line`` of each key.

    Raises ``UnreadableError`` where the text is no YAML, or goes beyond the bounds.
    """
    if (found := _UNPRINTABLE.search(text)) is not None:
        line = text.count("\n", 0, found.start()) + 1
        message = f"a character that is no text (U+{ord(found[0]):04X})"
        raise UnreadableError(message, "is it the right file? Remove that character, or save the file as UTF-8", line)
    # What the parser itself would take long for: it looks at all open brackets again with every token.
    if (found := _DEEP.search(text)) is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise UnreadableError(f"nested more than {_MAX_DEPTH} levels deep", "no key of deepen is that deep", line)
    if text.count("\n") > _MAX_LINES:
        raise UnreadableError(f"has more than {_MAX_LINES:,} lines", "is it the right file?", _MAX_LINES)
    composer = _Composer(name, places)
    try:
        return composer.document(YAML(typ="safe", pure=True).parse(text)), composer.problems, composer.unread
    except MarkedYAMLError as error:
        mark = error.problem_mark
        what = shortened(str(error.problem or error.context), 120)
        raise UnreadableError(f"not valid YAML: {what}", _remedy(what), mark.line + 1 if mark else None) from error
    except YAMLError as error:
        raise UnreadableError(f"not valid YAML: {shortened(str(error), 120)}", _remedy(""), composer.line) from error
    except (ValueError, OverflowError) as error:  # such as \\UFFFFFFFF
        message = "text in double quotes holds an escape that is no character"
        raise UnreadableError(message, "write it in single quotes, or `\\\\` for a backslash", composer.line) from error


def _remedy(what: str) -> str:
    if "\\t" in what:
        return "indent with spaces: YAML allows no tabs there"
    if "undefined alias" in what:
        return "text that begins with `*` needs quotes; otherwise give the `&name` before its `*name`"
    return "mend that line; text with a colon or a hash in it needs quotes"


@dataclass
class _Composer:
    name: str
    places: dict[Key, str]
    problems: list[Problem] = field(default_factory=list)
    count: int = 0
    line: int = 1
    """The last one that was reached."""
    unread: set[Key] = field(default_factory=set)
    """Keys whose values could not be read; they are None."""
    anchors: dict[str, tuple[Any, Key, int]] = field(default_factory=dict)
    """Value, key and number of values of each finished ``&name``."""
    open: set[str] = field(default_factory=set)
    """Anchors of what is still being read."""
    resolver: Any = field(default_factory=lambda: YAML(typ="safe", pure=True))

    def document(self, stream: Iterator[Any]) -> Any:
        """The only document of a stream; None when there is none."""
        data, documents = None, 0
        for event in stream:
            if isinstance(event, events.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise UnreadableError("a second document begins (`---`)", "keep one in a file", _line(event))
            elif not isinstance(event, events.StreamStartEvent | events.DocumentEndEvent | events.StreamEndEvent):
                data = self.value(event, stream, ())
        return data

    def value(self, event: Any, stream: Iterator[Any], key: Key) -> Any:
        """The value that begins with ``event``; the rest of it is taken from ``stream``."""
        # A mapping's key was noted before: its line, not its value's.
        self.line = _line(event)
        self.places.setdefault(key, f"{self.name}:{self.line}")
        if isinstance(event, events.AliasEvent):
            return self._alias(event, key)
        self._count(1, event, key)
        if len(key) > _MAX_DEPTH:
            message = f"nested more than {_MAX_DEPTH} levels deep"
            raise UnreadableError(message, "no key of deepen is that deep", _line(event), key[:2])
        anchor, before = event.anchor, self.count
        if anchor:
            self.open.add(anchor)
        found = self._content(event, stream, key)
        if anchor:
            self.open.discard(anchor)
            self.anchors[anchor] = (found, key, self.count - before + 1)
        return found

    def _content(self, event: Any, stream: Iterator[Any], key: Key) -> Any:
        tag = str(event.tag or "")
        if tag and tag not in ("!", _TAG + "str", _TAG + "map", _TAG + "seq"):
            shown = shortened(tag.replace(_TAG, "!!"))
            self._problem(key, f"tags such as `{shown}` mean nothing here", "remove it, or quote the text", event)
        if isinstance(event, events.ScalarEvent):
            return self._scalar(event, key, is_text=bool(tag))
        if isinstance(event, events.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(stream), events.SequenceEndEvent):
                items.append(self.value(event, stream, (*key, len(items))))
            return items
        return self._mapping(stream, key)

    def _mapping(self, stream: Iterator[Any], key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: list[Any] = []
        while not isinstance(event := next(stream), events.MappingEndEvent):
            if not isinstance(event, events.ScalarEvent):
                raise UnreadableError("a key must be text", "a list or a mapping cannot be one", _line(event), key)
            part = str(event.value)
            if len(values) >= _MAX_KEYS:
                message = f"more than {_MAX_KEYS:,} keys side by side"
                raise UnreadableError(message, "is it the right file?", _line(event), key)
            self._count(1, event, key)
            if len(part) > _MAX_KEY or _NO_TEXT.search(part):
                message = f"a key of {len(part):,} characters" if len(part) > _MAX_KEY else "a key that is no text"
                raise UnreadableError(message, "is a quote or a line end missing?", _line(event), key)
            if part in values:
                first = self.places[(*key, part)].rpartition(":")[2]
                self._problem((*key, part), f"given twice (first on line {first})", "keep one of the two", event)
                self.value(next(stream), stream, (*key, part))
            elif part == "<<" and not event.style:
                merged.append((self.value(next(stream), stream, (*key, part)), event))
            else:
                self.places[(*key, part)] = f"{self.name}:{_line(event)}"
                values[part] = self.value(next(stream), stream, (*key, part))
        for found, event in merged:
            self._merge(values, found, event, key)
        return values

    def _merge(self, values: dict[str, Any], found: Any, event: Any, key: Key) -> None:
        """``<<``: keys of other mappings, where this one does not give them; of several the first one counts."""
        for other in found if isinstance(found, list) else [found]:
            if not isinstance(other, dict):
                self._problem((*key, "<<"), "expected keys and values to take over", "write `<<: *name`", event)
                return
            for part, value in other.items():
                self.places.setdefault((*key, part), f"{self.name}:{_line(event)}")
                values.setdefault(part, _copy(value))

    def _alias(self, event: Any, key: Key) -> Any:
        shown = shortened(event.anchor)
        if event.anchor in self.open:
            raise UnreadableError(
                f"`*{shown}` stands inside `&{shown}`, so it has no end", "remove it", _line(event), key
            )
        if event.anchor not in self.anchors:
            raise UnreadableError(
                f"`*{shown}`: there is no `&{shown}` before it", _remedy("undefined alias"), _line(event), key
            )
        value, origin, size = self.anchors[event.anchor]
        self._count(size, event, key)
        if len(key) + _depth(value) > _MAX_DEPTH:
            raise UnreadableError(
                f"nested more than {_MAX_DEPTH} levels deep", "no key is that deep", _line(event), key[:2]
            )
        self._note_places(value, origin, key)
        return _copy(value)

    def _note_places(self, value: Any, origin: Key, key: Key) -> None:
        """What lies in a repeated value is at ``key``, too, and was written where it was written first."""
        self.places.setdefault(key, self.places.get(origin, self.name))
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for part, item in inner:
            self._note_places(item, (*origin, part), (*key, part))

    def _scalar(self, event: Any, key: Key, *, is_text: bool) -> Any:
        text = str(event.value)
        if _NO_TEXT.search(text):
            self._problem(key, "holds an escaped character that is no text", "leave out `\\0` and `\\ud800`", event)
            self.unread.add(key)
            return None
        if is_text or event.style:  # quoted: text, whatever it looks like
            return text
        if _PLAIN_INTEGER.fullmatch(text):  # most numbers, and the resolver is slow
            return int(text)
        tag = str(self.resolver.resolver.resolve(ScalarNode, text, (True, False)))
        if tag not in _NUMBERS_AND_WORDS:
            return text
        value = None
        if len(text) <= _MAX_DIGITS:
            value = self.resolver.constructor.construct_object(ScalarNode(tag, text))
        if len(text) > _MAX_DIGITS or (isinstance(value, float) and not math.isfinite(value)):
            self._problem(key, "is no number that can be used", "give a finite number", event, shortened(text))
            self.unread.add(key)
            return None
        return value

    def _problem(self, key: Key, message: str, remedy: str, event: Any, value: str = "") -> None:
        place = f"{self.name}:{_line(event)}"
        self.problems.append(Problem(dotted_path(key), message, remedy, value, place))

    def _count(self, number: int, event: Any, key: Key) -> None:
        self.count += number
        if self.count > _MAX_VALUES:
            message = f"holds more than {_MAX_VALUES:,} values, with what `*name` repeats"
            raise UnreadableError(message, "is it the right file?", _line(event), key[:1])


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _copy(value: Any) -> Any:
    """Mappings and lists anew: one written once and used twice may be changed in one place by ``--set``."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
