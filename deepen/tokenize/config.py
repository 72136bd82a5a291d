"""Settings of `tokenize`: whose vocabulary the corpus is written in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from deepen.errors import Problem
from deepen.settings import Count, Settings

TEMPLATES = ("auto", "none")
"""What ``template`` can be besides a file."""


class TrainVocabulary(Settings):
    """A new byte-level BPE vocabulary, for a base that is trained from scratch: ``{train: 4096}``."""

    train: Count = Field(ge=257)
    """Size of the vocabulary in tokens: ``<|endoftext|>`` (id 0), the 256 bytes, and merges learned from a sample of
    the domain and replay documents."""


class ExtendVocabulary(Settings):
    """The base's own vocabulary and more tokens learned from the domain sources: ``{extend: auto}``."""

    extend: Annotated[
        Annotated[Literal["auto"], Tag("auto")] | Annotated[Count, Field(ge=0), Tag("number")],
        Discriminator(lambda value: "auto" if value == "auto" else "number"),  # a mistake is reported once
    ]
    """How many tokens to learn, the pieces on the way to them included. ``auto`` does what the vocabulary report
    advises: nothing, or 500 to 2,000 (what raised tokens per word need; ChipNeMo, arXiv 2311.00176, found no gain in
    quality from more)."""
    init: Literal["subword_mean", "mean", "nearest", "random"] = "subword_mean"
    """What the rows of new tokens start from: the mean of the rows of the pieces that the text had before (ChipNeMo;
    default), the mean of all rows, the nearest rows by similarity, or random numbers."""
    words: str | None = None
    """A file of words to make single tokens, in addition to what is learned: one per line, or JSON lines with a
    ``piece``. Those that cannot be single tokens are counted with the reason."""
    allow_random: bool = False
    """Allow ``init: random``: such rows take probability from old tokens and are slow to learn."""
    repair_near_zero_rows: bool = False
    """Replace rows of the base that were never trained (near zero; Llama 3's reserved tokens) by the mean row."""


def _kind_of_vocabulary(value: Any) -> str:
    """Which of the three a value is meant to be; not called by a key, or problems would be told of that key."""
    if isinstance(value, str):
        return "base"
    keys = value if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, Settings) else ()
    return "learned" if "train" in keys else "grown"


VocabularySetting = Annotated[
    Annotated[Literal["keep"], Tag("base")]
    | Annotated[TrainVocabulary, Tag("learned")]
    | Annotated[ExtendVocabulary, Tag("grown")],
    Discriminator(_kind_of_vocabulary),
]
"""``keep``, ``{train: N}`` or ``{extend: auto, ...}``."""


class TokenizeConfig(Settings):
    """How documents become tokens."""

    vocabulary: VocabularySetting = "keep"
    """``keep`` uses the base's own tokenizer as it is; ``{extend: auto}`` or ``{extend: 1000}`` adds tokens of the
    domain to it; ``{train: N}`` learns a new one, which a base with ``init: random`` needs."""
    template: str = "auto"
    """Chat template for documents with turns. ``auto``: the base's own, or ``User: ...``, ``Assistant: ...`` if it has
    none; ``none``: turns stand as they are in the text, blank lines between them; else a file with a Jinja template,
    which the exported model carries then."""
    report: bool = True
    """Measure how the base's vocabulary fits the corpus, and what more tokens would save: some seconds, whatever the
    size of the corpus. An extended vocabulary is measured in any case."""


def problems(config: TokenizeConfig) -> Iterator[Problem]:
    """What is wrong between settings of ``tokenize`` that are each valid, and with the files that they name."""
    if config.template not in TEMPLATES and not Path(config.template).expanduser().is_file():
        remedy = "give `auto`, `none` or the path of a Jinja template"
        yield Problem("tokenize.template", "there is no such file", remedy, config.template)
    vocabulary = config.vocabulary
    if not isinstance(vocabulary, ExtendVocabulary):
        return
    if vocabulary.extend == 0 and vocabulary.words is None:
        yield Problem("tokenize.vocabulary.extend", "adds nothing", "set `auto`, a number, or `words`", "0")
    if vocabulary.init == "random" and not vocabulary.allow_random:
        message = "random rows take probability from old tokens and are slow to learn"
        yield Problem("tokenize.vocabulary.init", message, "use subword_mean, or add `allow_random: true`", "random")
    if vocabulary.words is not None and not Path(vocabulary.words).expanduser().is_file():
        yield Problem("tokenize.vocabulary.words", "there is no such file", "give a text file", vocabulary.words)
