"""`deepen explain`: what a key means, which values it takes, its default, and what may stand below it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from deepen.errors import DeepenError
from deepen.plug import field_at, field_names, plug_from, settings_at
from deepen.recipe.models import Machine, Recipe
from deepen.settings import Settings, parse_extent


@dataclass(frozen=True)
class Explanation:
    """The documentation of one key."""

    path: str
    meaning: str
    default: str
    kind: str
    keys: tuple[tuple[str, str], ...]
    """Keys below it with the first line of their meaning."""


def explain(path: str) -> Explanation:
    """Explain a dotted key such as ``train.schedule`` (or ``machine.compute``); raises for an unknown key."""
    model: type[Settings] = Machine if path.split(".")[0] == "machine" else Recipe
    key = tuple(part for part in path.replace("[", ".").replace("]", "").split(".") if part and not part.isdigit())
    key = key[1:] if model is Machine else key
    if not key:
        return Explanation(path or "recipe", (model.__doc__ or "").strip(), "", "", _children(model, ()))
    found = field_at(model, key)
    if found is None:
        close = get_close_matches(key[-1], field_names(model, key[:-1]), n=1)
        known = ", ".join(field_names(model, key[:-1])) or "none"
        meant = f"; did you mean `{close[0]}`?" if close else ""
        raise DeepenError(f"there is no key `{path}`{meant}", hint=f"keys here: {known}")
    owner, name = found
    field = owner.model_fields[name]
    return Explanation(path, meaning_of(owner, name), _default(field), _kind(field), _children(model, key))


def meaning_of(owner: type[Settings], name: str) -> str:
    """The docstring under a field, in the class that declares it.

    Sources are read here, when somebody asks, and not by pydantic when classes are made: that took a quarter of a
    second in every command.
    """
    for declaring in owner.__mro__:
        if name in declaring.__dict__.get("__annotations__", {}):
            return _docstrings(declaring).get(name, "").replace("``", "`")
    return ""


@cache
def _docstrings(declaring: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(declaring))).body[0]
    assert isinstance(body, ast.ClassDef), "the source of a class is a class"
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _children(model: type[Settings], key: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    rows = []
    for settings in settings_at(model, key):
        name = settings.model_fields["use"].default if "use" in settings.model_fields else None
        if isinstance(name, str):
            rows.append((f"use: {name}", _first_line(settings.__doc__)))
        for own, field in settings.model_fields.items():
            if own != "use":
                rows.append((("  " if name else "") + (field.alias or own), _first_line(meaning_of(settings, own))))
    return tuple(rows)


def _first_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split()).replace("``", "`")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none: must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        return str(value.model_dump(mode="json", by_alias=True))
    if isinstance(value, tuple):
        return str([item.model_dump(mode="json") if isinstance(item, Settings) else item for item in value])
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _kind(field: FieldInfo) -> str:
    for mark in field.metadata:
        if isinstance(mark, plug_from):
            return "one of " + ", ".join(mark.table)
    return _type_name(field.annotation)


def _type_name(annotation: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    if isinstance(annotation, type) and annotation in names:
        return names[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple:
        return f"list of {_type_name(arguments[0])}"
    if get_origin(annotation) is dict:
        return f"{{name: {_type_name(arguments[1])}}}"
    if str(get_origin(annotation)) == "typing.Literal":
        return " or ".join(f"`{argument}`" for argument in arguments)
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, plug_from):
            return "one of " + ", ".join(mark.table)
        if getattr(mark, "func", None) is parse_extent:
            return "so much text (`500 documents`, `20 MB`, `2B tokens`)"
    if hasattr(annotation, "__metadata__"):
        return _type_name(annotation.__origin__)
    if arguments:
        return " or ".join(dict.fromkeys(_type_name(argument) for argument in arguments))
    return {"Amount": "amount (`2%`, `500 steps`, `1M tokens`)", "Interval": "interval (`500 steps or 30min`)"}.get(
        getattr(annotation, "__name__", ""), "keys and values"
    )
