"""Texts that a model writes from fixed prompts, to be read by people, with two numbers that say when they go wrong.

Repetition: share of a text's runs of 4 words that stood in it before (1 - different / all; Welleck et al., "Neural Text
Generation with Unlikelihood Training", arXiv 1908.04319). Boilerplate: share of its lines that hold a phrase which
web pages repeat and people do not write (our list). A model that was trained on badly cleaned text shows both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from deepen.evaluate.documents.material import Material, smallest_hash_texts
from deepen.evaluate.items.prompts import texts_of
from deepen.evaluate.items.tables import Outcome, table_of
from deepen.formats.training.scores import Ability
from deepen.model.generate import Decoding, generate
from deepen.model.loss.model import LossModel

REPETITION, BOILERPLATE = "repetition", "boilerplate"
_RUN = 4
_PROMPT_WORDS = 8
"""Words of a held-out document that are its prompt."""
_UNSPACED = "\u3001-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
"""Chinese and Japanese write no spaces: there every character counts as a word."""
_BOILERPLATE = re.compile(
    r"all rights reserved|copyright|cookie|privacy policy|terms of (use|service)|click here|read more|sign up|log in|"
    r"subscribe|newsletter|javascript|lorem ipsum|share (this|on)|follow us|powered by|advertisement|http[s]?://|www\.",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Prompts:
    """What texts begin with."""

    domain: tuple[str, ...]
    """Empty: the first words of held-out documents of domain sources."""
    general: tuple[str, ...]
    per_source: int
    """Held-out documents per domain source."""


@dataclass(frozen=True)
class Prompt:
    """One beginning."""

    id: str
    text: str
    ability: Ability


def repetition(text: str) -> float:
    """Share of runs of 4 words that are repetitions; 0 for a text that is too short to have two."""
    words = _WORD.findall(text)
    runs = [tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def boilerplate(text: str) -> float:
    """Share of lines that hold a phrase of web pages; 0 for an empty text."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(bool(_BOILERPLATE.search(line)) for line in lines) / len(lines) if lines else 0.0


def prompts_of(prompts: Prompts, material: Material) -> Iterator[Prompt]:
    """All beginnings, domain first; the same in every run on the same corpus."""
    domain = {f"domain-{place}": text for place, text in enumerate(prompts.domain, start=1)}
    if not domain:
        for source in material.sources:
            if source.ability == "new":
                found = smallest_hash_texts(source, prompts.per_source)
                domain |= {f"{source.name}-{place}": _beginning(text) for place, text in enumerate(found, start=1)}
    for name, text in domain.items():
        if text.strip():
            yield Prompt(name, text, "new")
    for place, text in enumerate(prompts.general, start=1):
        yield Prompt(f"general-{place}", text, "kept")


def _beginning(text: str) -> str:
    """The first words of a text, as they stand there."""
    words = _WORD.finditer(text)
    ends = [word.end() for _, word in zip(range(_PROMPT_WORDS), words, strict=False)]
    return text[: ends[-1]] if ends else ""


def prepare_samples(
    prompts: Prompts, decoding: Decoding, material: Material
) -> Callable[[LossModel, str | None], pa.Table]:
    """Encode the prompts; see ``Probe.prepare``. Each has two rows: repetition and boilerplate of its text."""
    texts = texts_of(material)
    asked = list(prompts_of(prompts, material))
    encoded = [texts.encode(prompt.text) for prompt in asked]

    def measure(model: LossModel, what: str | None) -> pa.Table:
        whole = replace(decoding, end_ids=texts.end_ids, num_tokens=texts.num_tokens)
        written = [texts.decode(tokens) for tokens in generate(model, encoded, whole)]
        return table_of(
            Outcome(prompt.id, task, prompt.id, value=rate(text), gold=prompt.text, answer=text)
            for task, rate in ((REPETITION, repetition), (BOILERPLATE, boilerplate))
            for prompt, text in zip(asked, written, strict=True)
        )

    return measure


def as_markdown(table: pa.Table, baseline: pa.Table | None) -> str:
    """Every prompt with what the model makes of it, and what the base made of it."""
    ours, theirs = _by_prompt(table), {} if baseline is None else _by_prompt(baseline)
    parts = []
    for name, rows in ours.items():
        parts.append(f"## {name}\n\nPrompt: {_quoted(rows[REPETITION]['gold'])}")
        parts.append(_shown("Model" if theirs else "Base", rows))
        if name in theirs:
            parts.append(_shown("Base", theirs[name]))
    return "\n\n".join(parts) + "\n"


def _by_prompt(table: pa.Table) -> Mapping[str, dict[str, dict[str, str]]]:
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in table.to_pylist():
        found.setdefault(row["id"], {})[row["task"]] = row
    return found


def _shown(who: str, rows: Mapping[str, Mapping[str, object]]) -> str:
    rates = ", ".join(f"{task} {row['value']:.0%}" for task, row in rows.items())
    return f"{who} ({rates}):\n\n{_quoted(str(rows[REPETITION]['answer']))}"


def _quoted(text: str) -> str:
    lines: Sequence[str] = text.split("\n")
    return "\n".join(f"> {line}".rstrip() for line in lines)
