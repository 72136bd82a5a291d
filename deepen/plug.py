"""Plugs: small parts that users choose by name and third parties can add.

A plug *is* its configuration: a ``Plug`` class has a ``use`` field with its name, its parameters as fields and one
method that does the work. A room keeps its plugs in a plain dict and declares a field with ``plug_from(TABLE)``.
Anyone else's plug is written ``use: package.module:Name``; its source enters the fingerprint.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, get_args

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from deepen.settings import Settings

EXTERNAL = "external"


class Plug(Settings):
    """A part chosen by name: subclasses set ``use: Literal["name"] = "name"`` and add parameters and one method."""

    version: ClassVar[int] = 1
    """Raised whenever the behaviour or a default changes, so that finished work is not mistaken for current."""

    use: str


@dataclass(frozen=True)
class plug_from:  # noqa: N801 - reads as a field qualifier: Annotated[Step, plug_from(STEPS)]
    """Field qualifier: the value is one of ``table``'s plugs, given as a name or as ``{use: name, ...}``."""

    table: Mapping[str, type[Plug]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Any, CoreSchema] = {name: handler.generate_schema(plug) for name, plug in self.table.items()}
        choices[EXTERNAL] = core_schema.no_info_plain_validator_function(load_external)
        union = core_schema.tagged_union_schema(choices, discriminator=self._tag)
        return core_schema.no_info_before_validator_function(self._as_mapping, union, serialization=_AS_ITSELF)

    def _tag(self, value: Any) -> str:
        name = value["use"] if isinstance(value, Mapping) else value.use
        return name if name in self.table else EXTERNAL

    def _as_mapping(self, value: Any) -> Any:
        """Accept a bare name, and refuse what names no plug."""
        if isinstance(value, str):
            value = {"use": value}
        name = value.get("use") if isinstance(value, Mapping) else getattr(value, "use", None)
        if not isinstance(name, str):
            raise PydanticCustomError("plug_without_use", "expected `use: NAME`, one of {names}", self._names())
        if name not in self.table and ":" not in name:
            close = get_close_matches(name, self.table, n=1)
            meant = f"; did you mean `{close[0]}`?" if close else ""
            context = {"name": name, "meant": meant, **self._names()}
            raise PydanticCustomError("unknown_plug", "no plug named `{name}`{meant} (known: {names})", context)
        return value

    def _names(self) -> dict[str, str]:
        return {"names": ", ".join(f"`{name}`" for name in self.table)}


_AS_ITSELF = core_schema.plain_serializer_function_ser_schema(lambda value: value.model_dump(mode="json"))


def load_external(value: Any) -> Plug:
    """Import and validate a plug written as ``use: package.module:Name``."""
    if isinstance(value, Plug):
        return value
    module_name, _, class_name = value["use"].partition(":")
    try:
        plug_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise PydanticCustomError("plug_import", "cannot import plug: {error}", {"error": str(error)}) from error
    if not (isinstance(plug_class, type) and issubclass(plug_class, Plug)):
        raise PydanticCustomError("plug_import", "`{name}` is not a deepen Plug", {"name": value["use"]})
    try:
        return plug_class.model_validate(dict(value))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise PydanticCustomError("plug_fields", "{problems}", {"problems": problems}) from error


def identity(value: Any) -> Any:
    """JSON-able identity of a setting: only non-default values, plus name, version and (if external) source of plugs.

    Adding an option with a default therefore leaves the fingerprints of finished work as they are.
    """
    if isinstance(value, Settings):
        fields = {
            name: identity(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if getattr(value, name) != field.get_default(call_default_factory=True)
        }
        return fields | _plug_identity(value) if isinstance(value, Plug) else fields
    if isinstance(value, Mapping):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [identity(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _plug_identity(plug: Plug) -> dict[str, Any]:
    marks: dict[str, Any] = {"use": plug.use, "version": plug.version}
    if ":" in plug.use:
        source = inspect.getsource(inspect.getmodule(type(plug)) or type(plug))
        marks["source"] = hashlib.sha256(source.encode()).hexdigest()[:16]
    return marks


def settings_at(annotation: Any, key: tuple[str | int, ...]) -> list[type[Settings]]:
    """The settings classes that may stand at ``key`` below a field or class ``annotation`` (several for a choice)."""
    found = _settings_in(annotation)
    for part in key:
        if isinstance(part, int):
            continue
        named = [(settings, own) for settings in found if (own := _own_name(settings, part)) is not None]
        found = [inner for settings, own in named for inner in _settings_in_field(settings.model_fields[own])]
    return found


def field_at(model: type[Settings], key: tuple[str | int, ...]) -> tuple[type[Settings], str] | None:
    """The class that has the field named by ``key`` (list positions are ignored) and its name there, or None."""
    names = tuple(part for part in key if isinstance(part, str))
    if not names:
        return None
    owners = settings_at(model, names[:-1])
    return next(((owner, own) for owner in owners if (own := _own_name(owner, names[-1])) is not None), None)


def field_names(model: type[Settings], key: tuple[str | int, ...]) -> list[str]:
    """Names of all keys that may stand below ``key``, as users write them."""
    names = [field.alias or name for owner in settings_at(model, key) for name, field in owner.model_fields.items()]
    return list(dict.fromkeys(names))


def _own_name(settings: type[Settings], name: str) -> str | None:
    """What a field is called in Python that users write as ``name``."""
    return next((own for own, field in settings.model_fields.items() if (field.alias or own) == name), None)


def _settings_in_field(field: FieldInfo) -> list[type[Settings]]:
    choices: list[type[Settings]] = [
        plug for mark in field.metadata if isinstance(mark, plug_from) for plug in mark.table.values()
    ]
    return choices or _settings_in(field.annotation)


def _settings_in(annotation: Any) -> list[type[Settings]]:
    """All settings classes inside an annotation: itself, members of unions, items of lists, choices of plugs."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, plug_from):
            return list(mark.table.values())
    return [inner for part in get_args(annotation) for inner in _settings_in(part)]
