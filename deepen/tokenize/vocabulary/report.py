"""How well a vocabulary fits a corpus: what its words cost in tokens against English, and whether more tokens pay.

Everything is measured on a sample, so the time does not grow with the corpus. Fertility (tokens per word) and the
shares of split words are compared with English of the same run, or with a short built-in text when it has none. Scripts
without spaces have no words to count: there it is tokens per character.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deepen.formats.architecture import Architecture
from deepen.tokenize.vocabulary.base_model import BaseModel
from deepen.tokenize.vocabulary.growth import Growth, grow

HIGH_FERTILITY = 2.0
"""Tokens per word from which more tokens are considered; English is at 1.2 to 1.5 in its own vocabularies."""
HIGH_PREMIUM = 2.0
"""Tokens per word against English's from which they are considered."""
HIGH_UNKNOWN = 0.01
"""Share of tokens that are lost text (in a vocabulary without bytes) from which they are considered."""
FEWEST, MOST = 500, 2_000
"""What ``auto`` adds, if anything: rows of a few thousand rare tokens are hardly ever trained."""
_ENOUGH_OF_GAIN = 0.9
"""``auto`` adds as many as save this share of what ``MOST`` would save."""
_WORTH_IT = 0.05
"""Less saved is not worth a new vocabulary: ChipNeMo saved 1.6 to 3.3 % and gained nothing (arXiv 2311.00176)."""
CHARACTERS_PER_WORD = 1.5
"""Characters that count as a word in scripts without spaces, where a verdict needs words: a usual mean for Chinese."""
EXPOSURES = 100
"""How often a new token must be seen to be learned, for the break-even; see also the exposures that `mix` counts."""
_SHOWN = 10
_ADDED = ("bytes", "characters", "units", "words", "tokens")
"""What adds up over samples."""
_WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Thai, Lao, Burmese, Khmer, the Japanese syllables and Chinese characters."""
_SPACELESS = re.compile(f"[{_WITHOUT_SPACES}]")
_UNIT = re.compile(rf"[{_WITHOUT_SPACES}]|[^\s{_WITHOUT_SPACES}]+")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-z]")
_LOOK_AT_CHARACTERS = 100_000
_ENGLISH = (
    "The river had been rising since the morning, and by noon the lower road was under water. People stood at their "
    "doors and talked about the spring of an earlier year, when the bridge was carried away and nobody could cross "
    "for a week. A teacher led her class up the hill to the old school, where it was dry; the children thought that it "
    "was a holiday. In the afternoon the wind turned, the rain stopped, and a pale sun came out over the fields. "
    "Two men with a boat went from house to house and asked whether anything was needed. Most families wanted bread, "
    "milk and candles, and one old man asked for a newspaper. The mayor told reporters that the damage would cost "
    "about three million, that no one had been hurt, and that work on a stronger wall would begin before winter."
)


@dataclass(frozen=True)
class Sample:
    """Texts of one source in one language."""

    source: str
    role: str
    language: str | None
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """What one sample costs in a vocabulary."""

    source: str
    role: str
    language: str | None
    unit: Literal["word", "character"]
    """What most units are: runs between white space, or characters in scripts without spaces."""
    bytes: int
    characters: int
    units: int
    """Words, each character of a script without spaces counted by itself."""
    words: float
    """The same, with ``CHARACTERS_PER_WORD`` of such characters as one word."""
    tokens: int
    continued_share: float
    """Share of words (characters) of more than one token."""
    byte_share: float
    """Share of tokens that are bytes of a character, not characters."""
    unknown_share: float
    """Share of tokens that stand for text which the vocabulary cannot write: it is lost."""
    fragmented: tuple[tuple[str, int, int], ...]
    """The words that cost most: word, tokens of one, how often it stands in the sample."""
    premium: float = 1.0
    """Tokens per word against English's."""

    @property
    def fertility(self) -> float:
        """Tokens per word, or per character."""
        return self.tokens / max(1, self.units)

    @property
    def per_word(self) -> float:
        """Tokens per word, with ``CHARACTERS_PER_WORD`` where there are no spaces."""
        return self.tokens / max(1.0, self.words)

    def to_json(self) -> dict[str, Any]:
        """All fields and ratios, rounded."""
        ratios = {
            "words": self.words,
            "fertility": self.fertility,
            "tokens_per_word": self.per_word,
            "bytes_per_token": self.bytes / max(1, self.tokens),
            "characters_per_token": self.characters / max(1, self.tokens),
            "continued_share": self.continued_share,
            "byte_share": self.byte_share,
            "unknown_share": self.unknown_share,
            "premium": self.premium,
        }
        return asdict(self) | {name: round(value, 4) for name, value in ratios.items()}


@dataclass(frozen=True)
class Report:
    """How a vocabulary fits the sources of a run, and what to do."""

    vocabulary_size: int
    english: str
    """What English was measured on."""
    english_fertility: float
    fits: tuple[Fit, ...]
    extend_by: int
    """0 keeps the vocabulary."""
    reason: str
    gains: dict[int, float]
    """Share of the poorly fitting text's tokens that so many new tokens save."""
    cost: dict[str, float]
    """The other side: see ``cost_of``."""
    poor_sources: tuple[str, ...] = ()
    """Domain sources that fit poorly: what new tokens are learned from."""

    @property
    def verdict(self) -> str:
        """``keep`` or ``extend by N``."""
        return f"extend by {self.extend_by}" if self.extend_by else "keep"

    def to_json(self) -> dict[str, Any]:
        """Contents of ``report.json``."""
        return {
            "vocabulary_size": self.vocabulary_size,
            "english": {"measured_on": self.english, "fertility": round(self.english_fertility, 4)},
            "sources": [fit.to_json() for fit in self.fits],
            "verdict": self.verdict,
            "extend_by": self.extend_by,
            "reason": self.reason,
            "poor_sources": list(self.poor_sources),
            "gains": {str(number): round(share, 5) for number, share in self.gains.items()},
            "cost": self.cost,
        }


def report_of(
    samples: Sequence[Sample], tokenizer: Path, *, shape: Architecture | None = None, domain_bytes: int = 0
) -> Report:
    """Measure samples with the tokenizer in a folder (its ``tokenizer.json``) and judge whether to extend it.

    ``shape`` is the model's, for the cost of more rows; ``domain_bytes`` the bytes of all domain text, for what is
    saved in one pass over it. Raises ``DeepenError`` for a vocabulary that is no BPE.
    """
    base = BaseModel.read(tokenizer / "tokenizer.json")
    fits = [measure(base, sample) for sample in samples if any(sample.texts)]
    english, spoken = _english(base, samples, fits)
    fits = [Fit(**{**vars(fit), "premium": fit.per_word / english.per_word}) for fit in fits]
    poor = [fit for fit in fits if fit.role == "domain" and _fits_poorly(fit)]
    number, reason, growth = 0, _why_keep(fits), None
    if poor:
        names = {(fit.source, fit.language) for fit in poor}
        texts = [text for sample in samples if (sample.source, sample.language) in names for text in sample.texts]
        growth = grow(base, base.count_words(texts), MOST)
        number, reason = _number(growth, poor)
    gains = {at: growth.saved[at - 1] / growth.sample_tokens for at in _marks(growth)} if growth else {}
    share = sum(fit.bytes for fit in poor) / max(1, sum(fit.bytes for fit in fits if fit.role == "domain"))
    # Old tokens of all poorly fitting text, from the bytes of the domain and what the sample needs per byte.
    tokens = domain_bytes * share * sum(fit.tokens for fit in poor) / max(1, sum(fit.bytes for fit in poor))
    cost = cost_of(growth, number, shape, tokens) if growth is not None and number else {}
    names_of_poor = tuple(dict.fromkeys(fit.source for fit in poor))
    return Report(base.size, spoken, english.fertility, tuple(fits), number, reason, gains, cost, names_of_poor)


def measure(base: BaseModel, sample: Sample) -> Fit:
    """Count the tokens of a sample, and of each of its words."""
    units: Counter[str] = Counter()
    uses = np.zeros(base.size, dtype=np.int64)
    for text in sample.texts:
        units.update(_UNIT.findall(text))
        uses += np.bincount(base.tokenizer.encode(text, add_special_tokens=False).ids, minlength=base.size)
    part_ids = [number for token, number in base.vocabulary.items() if base.is_part_of_character(token)]
    is_spaceless = np.array([_SPACELESS.match(unit) is not None for unit in units], dtype=bool)
    costs = _costs(base, list(units), is_spaceless)
    times = np.array(list(units.values()), dtype=np.int64)
    num_characters = int(times[is_spaceless].sum())
    # By the tokens that one token per word would save in all; ties by the word, so that the report is always the same.
    ranking = sorted(zip(units, costs.tolist(), times.tolist(), strict=True), key=lambda at: (-(at[1] - 1) * at[2], at))
    tokens, num_units = int(uses.sum()), int(times.sum())
    return Fit(
        source=sample.source, role=sample.role, language=sample.language,
        unit="character" if 2 * num_characters > num_units else "word",
        bytes=sum(len(text.encode()) for text in sample.texts), characters=sum(map(len, sample.texts)),
        units=num_units, words=num_units - num_characters * (1 - 1 / CHARACTERS_PER_WORD), tokens=tokens,
        continued_share=float(times[costs > 1].sum()) / max(1, num_units),
        byte_share=float(uses[part_ids].sum()) / max(1, tokens),
        unknown_share=float(uses[base.unknown_id]) / max(1, tokens) if base.unknown_id is not None else 0.0,
        fragmented=tuple(item for item in ranking[:_SHOWN] if item[1] > 1),
    )  # fmt: skip


def _costs(base: BaseModel, units: Sequence[str], is_spaceless: Any) -> Any:
    """Tokens of each word as it stands after a space, or of each character of a script without spaces by itself."""
    costs = np.zeros(len(units), dtype=np.int64)
    characters = [base.spell(units[at]) for at in np.flatnonzero(is_spaceless).tolist()]
    costs[is_spaceless] = [len(ids) for ids in base.encode_words(characters)]
    # A word at the beginning of a text may be split otherwise than inside one; so it is measured behind "a ".
    before = len(base.tokenizer.encode("a", add_special_tokens=False).ids)
    words = [f"a {units[at]}" for at in np.flatnonzero(~is_spaceless).tolist()]
    encoded = base.tokenizer.encode_batch(words, add_special_tokens=False)
    costs[~is_spaceless] = [len(item.ids) - before for item in encoded]
    return costs


def _english(base: BaseModel, samples: Sequence[Sample], fits: Sequence[Fit]) -> tuple[Fit, str]:
    """What English costs: in the run's general text, else in any English source, else in the built-in text."""
    found = [s for s in samples if any(s.texts) and _is_english(s)]
    chosen = [s for s in found if s.role != "domain"] or found
    if not chosen:
        return measure(base, Sample("English", "built-in", "en", (_ENGLISH,))), "a short built-in text"
    wanted = {(sample.source, sample.language) for sample in chosen}
    pooled = [fit for fit in fits if (fit.source, fit.language) in wanted]
    whole = {**vars(pooled[0]), **{key: sum(getattr(fit, key) for fit in pooled) for key in _ADDED}}
    return Fit(**whole), ", ".join(dict.fromkeys(sample.source for sample in chosen))


def _is_english(sample: Sample) -> bool:
    if sample.language is not None:
        return sample.language.lower().partition("-")[0] in ("en", "eng", "english")
    head = "".join(sample.texts)[:_LOOK_AT_CHARACTERS]
    return sample.role != "domain" and len(_LATIN.findall(head)) > 0.95 * max(1, len(_LETTER.findall(head)))


def _fits_poorly(fit: Fit) -> bool:
    return fit.per_word > HIGH_FERTILITY or fit.premium >= HIGH_PREMIUM or fit.unknown_share > HIGH_UNKNOWN


def _why_keep(fits: Sequence[Fit]) -> str:
    domain = [fit for fit in fits if fit.role == "domain"]
    if not domain:
        return "there is no domain text to fit"
    worst = max(domain, key=lambda fit: fit.per_word)
    return (
        f"at most {worst.per_word:.2f} tokens per word ({worst.source}), {worst.premium:.2f} times English: no more "
        f"than {HIGH_FERTILITY:g} tokens, less than {HIGH_PREMIUM:g} times"
    )


def _number(growth: Growth, poor: Sequence[Fit]) -> tuple[int, str]:
    """How many tokens to add, and why."""
    worst = max(poor, key=lambda fit: fit.per_word)
    costs = f"{worst.source} costs {worst.per_word:.2f} tokens per word, {worst.premium:.2f} times English"
    lost = max(fit.unknown_share for fit in poor)
    costs += f", and {lost:.0%} of its tokens are lost text" if lost > HIGH_UNKNOWN else ""
    if growth.saved_share < _WORTH_IT:
        return 0, f"{costs}, but {len(growth.tokens):,} more tokens would save {growth.saved_share:.1%} only"
    enough = _ENOUGH_OF_GAIN * growth.saved[-1]
    # The last one saves all there is, so `next` finds one.
    choices = [*range(FEWEST, len(growth.saved), 100), len(growth.saved)]
    number = next(number for number in choices if growth.saved[min(number, len(growth.saved)) - 1] >= enough)
    share = growth.saved[number - 1] / growth.sample_tokens
    return number, f"{costs}; {number:,} more tokens save {share:.1%} of its tokens"


def _marks(growth: Growth) -> list[int]:
    """Sizes at which the gain is reported."""
    return [number for number in (100, 250, 500, 1_000, 1_500, 2_000) if number <= len(growth.saved)]


def cost_of(growth: Growth, number: int, shape: Architecture | None, domain_tokens: float) -> dict[str, float]:
    """What ``number`` more tokens cost and save in a pass over ``domain_tokens`` old tokens of poorly fitting text.

    ``break_even_tokens``: old tokens of such text after which the compute saved equals what it takes to show the rarest
    new token ``EXPOSURES`` times, the price of learning the new rows. FLOPs are of training (6 N) without attention.
    """
    saved = growth.saved[number - 1] / growth.sample_tokens
    # 0: only a step on the way to others, nothing to learn.
    rarest = min((uses for uses in growth.uses[:number] if uses), default=1)
    to_learn = growth.sample_tokens * EXPOSURES / rarest
    known: dict[str, float] = {
        "rows": number,
        "saved_share": round(saved, 5),
        "tokens_saved": round(domain_tokens * saved),
    }
    net = saved
    if shape is not None:
        before = shape.training_flops_per_token(0)
        extra = 6.0 * number * shape.hidden_size
        parameters = number * shape.hidden_size * (1 if shape.tied else 2)
        net = saved - (1 - saved) * extra / before  # fewer tokens, each of which costs the head's new rows
        known |= {
            "parameters": parameters,
            "bytes_bf16": 2 * parameters,
            "flops_saved": round(domain_tokens * before * net),
        }
    return known | ({"break_even_tokens": round(to_learn / net)} if net > 0 else {})
