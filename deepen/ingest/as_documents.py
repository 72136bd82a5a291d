"""Records to documents: which field holds the text or the conversation, and what makes a record unusable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

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
from deepen.ingest.read.records import Record, Reject
from deepen.progress import say

_GUESSES = ("text", "content", "body", "article", "document")
_GUESS_RECORDS = 100


@dataclass(frozen=True)
class Contents:
    """Where a source's records have their text: one field, or the fields of conversations."""

    field: str = "text"
    conversations: Literal["answers", "as_text"] | None = None

    def fields(self, source: Source) -> tuple[str, ...]:
        """All fields that a record is wanted for."""
        texts = (self.field,) if self.conversations is None else (*FIELDS, CATEGORY_FIELD)
        own = (source.category.field,) if isinstance(source.category, FieldName) else ()
        return tuple(dict.fromkeys((*texts, "id", *own)))


def guess_contents(source: Source, records: Iterable[Record], tell: Callable[[str], None] = say) -> Contents:
    """The first likely field of the source's first records, or conversations where they are some; says which.

    Raises ``SourceError`` when there is neither.
    """
    seen: Counter[str] = Counter()
    conversations = 0
    for record in islice(records, _GUESS_RECORDS):
        seen.update(record.values.keys())
        for name in _GUESSES:
            if isinstance(record.values.get(name), str):
                tell(f"ingest: source `{source.name}` has its text in the field `{name}` (set `text` to change this)")
                return Contents(name)
        conversations += looks_like_conversation(record.values)
    if conversations:
        tell(
            f"ingest: source `{source.name}` has conversations or instructions; answers alone are trained"
            " (`conversations: as_text` trains all of their words)"
        )
        return Contents(conversations="answers")
    if not seen:
        return Contents()  # nothing readable: the rejects will say why
    names = ", ".join(f"`{name}`" for name, _ in seen.most_common(12))
    raise SourceError(
        f"source `{source.name}`: cannot tell which field holds the text; its records have {names}",
        hint="set `text: FIELD` for this source",
    )


def as_document(record: Record, source: Source, contents: Contents) -> Document | Reject:
    """The record as a document of ``source``, or why it is none."""
    location = record.location
    found = _contents_of(record, contents)
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


def _contents_of(record: Record, contents: Contents) -> Conversation | Reject:
    if contents.conversations is None or record.whole_file:
        text = _text_of(record, "text" if record.whole_file else contents.field)
        return text if isinstance(text, Reject) else Conversation(text, None)
    found = read_conversation(record.values)
    if contents.conversations == "answers":
        return Reject(record.location, found.reason, found.detail) if isinstance(found, Fault) else found
    text_of_all = conversation_text(record.values)
    if text_of_all is None:
        return Reject(record.location, "not_a_conversation")
    known = Conversation(text_of_all, None) if isinstance(found, Fault) else found
    return replace(known, text=text_of_all, spans=None)


def _text_of(record: Record, field: str) -> str | Reject:
    if field not in record.values:
        return Reject(record.location, "no_text_field", f"no field `{field}`")
    text = record.values[field]
    if text is None:
        return Reject(record.location, "empty_text", f"`{field}` is null")
    if not isinstance(text, str):
        return Reject(record.location, "text_not_string", f"`{field}` is a {type(text).__name__}")
    return text


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
