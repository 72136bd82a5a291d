"""Records to documents: which field holds the text or the conversation, and what makes a record unusable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from deepen.errors import SourceError
from deepen.formats.documents.documents import Document, content_hash, document_id
from deepen.ingest.config import FieldName, Source
from deepen.ingest.conversations import (
    CATEGORY_FIELD,
    FIELDS,
    Conversation,
    Fault,
    conversation_text,
    looks_like_conversation,
    read_conversation,
)
from deepen.ingest.read.records import Record, Reject, bad_byte
from deepen.progress import say

_GUESSES = ("text", "content", "body", "article", "document")
_GUESS_RECORDS = 100


@dataclass(frozen=True)
class Contents:
    """Where a source's records have their text: one field, or the fields of conversations."""

    field: str = "text"
    conversations: Literal["answers", "as_text"] | None = None
    guessed: bool = False
    """The records showed it, nobody said it."""

    def is_in(self, record: Record) -> bool:
        """Whether a record has what is looked for, be it usable or not."""
        if record.whole_file:
            return True
        if self.conversations is not None:
            return looks_like_conversation(record.values)
        return _found_at(record.values, self.field) is not _MISSING

    def fields(self, source: Source) -> tuple[str, ...]:
        """All fields that a record is wanted for."""
        path = (self.field, self.field.partition(".")[0])  # a column may have a full stop in its name
        texts = path if self.conversations is None else (*FIELDS, CATEGORY_FIELD)
        own = (source.category.field,) if isinstance(source.category, FieldName) else ()
        return tuple(dict.fromkeys((*texts, "id", *own)))


def guess_contents(
    source: Source, groups: Iterable[Iterable[Record]], tell: Callable[[str], None] = say, *, all_tables: bool = True
) -> Contents:
    """The first likely field that records have, or conversations where they are some; says which.

    Looks at the first records of each group in turn until one shows it. Raises ``SourceError`` when none does and the
    source has nothing but tables (``all_tables``).
    """
    seen: Counter[str] = Counter()
    others: dict[str, str] = {}
    for group in groups:
        found = _guess(source, islice(group, _GUESS_RECORDS), seen, others)
        if found is not None:
            what = (
                f"has its text in the field `{found.field}` (set `text` to change this)"
                if found.conversations is None
                else "has conversations or instructions; answers alone are trained"
                " (`conversations: as_text` trains all of their words)"
            )
            tell(f"ingest: source `{source.name}` {what}")
            return found
    if not seen or not all_tables:
        return Contents(guessed=True)  # the rejects will say why
    names = ", ".join(f"`{name}`" for name, _ in seen.most_common(12))
    what = f"its records have {names}"
    raise SourceError(
        f"source `{source.name}`: cannot tell which field holds the text; {'; '.join([what, *others.values()])}",
        hint="set `text: FIELD` for this source, or `text: FIELD.INNER` for a text inside an object",
    )


def _guess(source: Source, records: Iterable[Record], seen: Counter[str], others: dict[str, str]) -> Contents | None:
    """What these records show; notes their fields in ``seen``, and in ``others`` what stands where a text might."""
    conversations = 0
    for record in records:
        seen.update(record.values.keys())
        for name in _GUESSES:
            value = record.values.get(name)
            if isinstance(value, str) or _may_be_text(value, source.text_from):
                return Contents(name, guessed=True)
            if value is not None:
                others.setdefault(name, _what_it_is(name, value))
        conversations += looks_like_conversation(record.values)
    return Contents(conversations="answers", guessed=True) if conversations else None


_MISSING = object()


def _found_at(values: Mapping[str, Any], field: str) -> Any:
    """The value of a field, or at a path of names through objects; ``_MISSING`` if there is none."""
    if field in values:
        return values[field]
    value: Any = values
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _as_text(value: Any, also: Sequence[str]) -> str | None:
    """The value as text, if it is one or may be taken for one; None otherwise."""
    if isinstance(value, str):
        return value
    if not _may_be_text(value, also):
        return None
    return value.decode("utf-8") if isinstance(value, bytes) else "\n".join(value)


def _may_be_text(value: Any, also: Sequence[str]) -> bool:
    if isinstance(value, bytes):
        return "bytes" in also
    return "list" in also and isinstance(value, list) and all(isinstance(part, str) for part in value)


def _what_it_is(name: str, value: Any) -> str:
    """What a value is that is no text, and how it could be used."""
    if isinstance(value, list):
        if all(isinstance(part, str) for part in value):
            return f"`{name}` is a list of texts (`text_from: [list]` takes it)"
        return f"`{name}` is a list"
    if isinstance(value, bytes):
        return f"`{name}` is bytes (`text_from: [bytes]` takes them)"
    if isinstance(value, Mapping):
        inner = ", ".join(f"`{name}.{key}`" for key in list(value)[:12])
        return f"`{name}` is an object" + (f" with {inner}" if inner else "")
    return f"`{name}` is a {type(value).__name__}"


def as_document(record: Record, source: Source, contents: Contents) -> Document | Reject:
    """The record as a document of ``source``, or why it is none."""
    location = record.location
    found = _contents_of(record, contents, source)
    if isinstance(found, Reject):
        return found
    if not found.text.strip():
        return Reject(location, "empty_text")
    try:
        digest = content_hash(found.text)
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell but no file can hold
        return Reject(location, "invalid_unicode", f"U+{ord(found.text[error.start]):04X} at position {error.start}")
    meta = {"location": location, **record.meta}
    own_id = record.values.get("id")
    if isinstance(own_id, str | int) and _is_writable(str(own_id)):
        meta["id"] = str(own_id)
    return Document(
        id=document_id(source.name, location),
        text=found.text,
        source=source.name,
        category=_category(record, source, found),
        language=source.language,
        licence=source.licence,
        content_hash=digest,
        meta=meta,
        spans=found.spans,
    )


def _contents_of(record: Record, contents: Contents, source: Source) -> Conversation | Reject:
    if contents.conversations is None or record.whole_file:
        text = _text_of(record, "text" if record.whole_file else contents.field, source.text_from)
        return text if isinstance(text, Reject) else Conversation(text, None)
    found = read_conversation(record.values)
    if contents.conversations == "answers":
        return Reject(record.location, found.reason, found.detail) if isinstance(found, Fault) else found
    text_of_all = conversation_text(record.values)
    if text_of_all is None:
        return Reject(record.location, "not_a_conversation")
    known = Conversation(text_of_all, None) if isinstance(found, Fault) else found
    return replace(known, text=text_of_all, spans=None)


def _text_of(record: Record, field: str, also: Sequence[str]) -> str | Reject:
    value = _found_at(record.values, field)
    if value is _MISSING:
        return Reject(record.location, "no_text_field", f"no field `{field}`")
    if value is None:
        return Reject(record.location, "empty_text", f"`{field}` is null")
    try:
        text = _as_text(value, also)
    except UnicodeDecodeError as error:
        return Reject(record.location, "not_utf8", bad_byte(error))
    return Reject(record.location, "text_not_string", _what_it_is(field, value)) if text is None else text


def _category(record: Record, source: Source, found: Conversation) -> str | None:
    value = found.category
    if isinstance(source.category, FieldName):
        value = record.values.get(source.category.field)
    elif source.category is not None:
        return source.category
    # A lone surrogate would make the file unwritable.
    return str(value).encode("utf-8", "replace").decode() if value is not None else None


def _is_writable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
