"""Settings of `mix`: how documents share rows, and in which proportion sources are trained at each point of the run.

What each key does to the order stands in ``phases.py``; here are the keys, and what can be wrong with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from deepen.errors import Problem
from deepen.mix.fixed.config import FixedRows, fixed_problems
from deepen.settings import AmountSetting, Count, Many, Settings, Share

WORTHWHILE_EPOCHS = 4.0
"""Up to here repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2023, arXiv:2305.16264)."""
_MOST_EPOCHS = 16.0
"""Beyond it a token is worth less than two thirds of a new one (same source), which nobody wants unawares."""
DEFAULT_DOMAIN_SHARE = 0.7

_Weight = Annotated[float, Field(gt=0)]


def _shape(value: Any) -> str:
    """Which of the ways to write a setting was used, so that a mistake in it is reported once."""
    if isinstance(value, dict):
        return "keys"
    return "list" if isinstance(value, list | tuple) else "name" if value in ("proportional", "category") else "one"


class LengthPhase(Settings):
    """Rows of one length, for a part of the run."""

    until: AmountSetting | None = None
    """Where the part ends, from the start of the run: `80%`, `500 steps`, `1B tokens`. None: the end of the run."""
    length: Annotated[Count, Field(ge=2)]
    """Positions in a row, in tokens."""


class SharePhase(Settings):
    """A share of domain text, for a part of the run."""

    until: AmountSetting | None = None
    """Where the part ends, from the start of the run: `10%`, `500 steps`, `1B tokens`. None: the end of the run."""
    share: Share
    """Share of tokens from domain sources; with `ramp: linear` the share that is reached at the end of the part."""
    ramp: Literal["step", "linear"] = "step"
    """step: this share from the beginning of the part on; linear: a straight line from the share before it."""


Weights = Annotated[
    Annotated[Literal["proportional", "equal", "unimax"], Tag("one")] | Annotated[dict[str, _Weight], Tag("keys")],
    Discriminator(lambda value: "keys" if isinstance(value, dict) else "one"),
]


class Anneal(Settings):
    """A mixture of its own for the end of the run, where the learning rate falls."""

    last: AmountSetting
    """Length of the phase, counted from the end: `10%`, `200 steps`, `1B tokens`."""
    domain_share: Share | None = None
    """Share of tokens from domain sources in it; None: as before."""
    weights: Weights | None = None
    """Weights of the sources in it; None: as before."""


class MixConfig(Settings):
    """How token shards become one training order."""

    sequence_length: Annotated[
        Annotated[Count, Field(ge=2), Tag("one")] | Annotated[Many[LengthPhase], Tag("list")],
        Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "one"),
    ] = 2048
    """Positions in a training row, in tokens; at most what the base was made for. A list of `{until, length}` is a
    curriculum: each length has documents of its own, and a batch has the same number of tokens at every length."""
    packing: Literal["best_fit", "concatenate"] = "best_fit"
    """How documents share a row. best_fit cuts only documents longer than a row (Ding et al. 2024, arXiv:2404.10830:
    fewer needless cuts, better reading comprehension at equal loss); concatenate is the classic splice that cuts at
    every row's end. Neither drops a token."""
    isolate: bool | None = None
    """Whether the documents of a row are hidden from each other. None: true (Zhao et al. 2024, arXiv:2402.13991: less
    distraction by unrelated text), and false with `order: megatron`, as there."""
    order: Literal["shuffled", "megatron", "megatron_one_pass"] = "shuffled"
    """shuffled: shares exact at every point, no repeats before all rows were seen, extendable. megatron: row by row
    what Megatron-LM's GPTDataset and BlendedDataset would train with the same seed; has their drawbacks.
    megatron_one_pass: the same without weights, where every sample comes once and a source that is spent leaves."""
    domain_share: (
        Annotated[
            Annotated[Share, Tag("one")]
            | Annotated[Literal["proportional"], Tag("name")]
            | Annotated[Many[SharePhase], Tag("list")],
            Discriminator(_shape),
        ]
        | None
    ) = None
    """Share of *tokens* from domain sources, the rest is replay; a list of `{until, share, ramp}` changes it over the
    run; `proportional` takes all text as it is. None: 0.7 when there is a replay source, 1 when there is not. Published
    replay ranges from 1 % (Meditron, arXiv:2311.16079) to 50 % (Ibrahim et al. 2024, arXiv:2403.08763); D-CPT
    (arXiv:2406.01375) finds optimal domain shares of 0.73 to 0.92, CMR (arXiv:2407.17467) 0.30 to 0.48. 0.7 leans
    towards keeping old skills."""
    weights: Weights = "proportional"
    """How the tokens of a role are divided among its sources: `proportional` to their tokens, `equal`, `unimax` (Chung
    et al. 2023, arXiv:2304.09151: as equal as `max_epochs` allows), or `{SOURCE: weight}` for all sources of a role,
    relative to each other."""
    temperature: float = Field(default=1.0, ge=1)
    """Flattens proportional weights: tokens^(1/T) (Conneau et al. 2020, arXiv:1911.02116: T = 3.3). 1: as they are."""
    balance: (
        Annotated[
            Annotated[Literal["category"], Tag("name")] | Annotated[dict[str, _Weight], Tag("keys")],
            Discriminator(lambda value: "keys" if isinstance(value, dict) else "name"),
        ]
        | None
    ) = None
    """How a source's tokens are divided among the categories of its documents: None as they are, `category` in equal
    parts, or `{CATEGORY: weight}`; documents without a category count as the category `none`."""
    max_epochs: float = Field(default=4.0, gt=0)
    """How often a source may be repeated. Beyond 4 passes repeated tokens are worth clearly less than new ones
    (Muennighoff et al. 2023, arXiv:2305.16264: 4 epochs cost 0.5 % of loss against unique data)."""
    allow_repetition: bool = False
    """Permits a `max_epochs` above 16, where a repeated token is worth less than two thirds of a new one."""
    anneal: Anneal | None = None
    """A mixture of its own for the end of the run (Blakeney et al. 2024, arXiv:2406.03476: domain text helps most
    there)."""
    fixed_rows: Many[FixedRows] = ()
    """Rows that another tool has prepared as token ids (Colossal-LLaMA's Arrow folders): each is one row, never cut or
    joined. They take part in shares, weights and epochs like sources, and are neither curated nor scored."""
    control: bool = False
    """Train on replay alone, with as many tokens and steps: the control that says how much of a change is the domain's
    doing, and how much comes from training on."""

    @property
    def lengths(self) -> tuple[LengthPhase, ...]:
        """The lengths of rows over the run."""
        given = self.sequence_length
        return given if isinstance(given, tuple) else (LengthPhase(length=given),)

    @property
    def longest(self) -> int:
        """The longest row."""
        return max((phase.length for phase in self.lengths), default=0)

    @property
    def is_isolated(self) -> bool:
        """Whether the documents of a row are hidden from each other."""
        return not self.is_megatron if self.isolate is None else self.isolate

    @property
    def is_megatron(self) -> bool:
        """Whether rows come in Megatron's order."""
        return self.order != "shuffled"


def smallest_domain_share(config: MixConfig, *, has_replay: bool) -> float:
    """The smallest share of domain tokens that is planned at any point of a run; of `proportional`, no less than 1."""
    if config.control:
        return 0.0
    given = config.domain_share
    if isinstance(given, tuple):
        return min((phase.share for phase in given), default=1.0)
    if isinstance(given, float):
        return given
    return DEFAULT_DOMAIN_SHARE if given is None and has_replay else 1.0


def problems(config: MixConfig, sources: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    """Everything in the settings that cannot work with ``sources`` (name, role), however long the run is."""
    if isinstance(config.domain_share, tuple) and config.domain_share and config.domain_share[0].ramp == "linear":
        message = "a ramp needs a share to begin at, and this is the first part of the run"
        yield Problem("mix.domain_share[0].ramp", message, "put a part with `ramp: step` before it", "linear")
    if config.max_epochs > _MOST_EPOCHS and not config.allow_repetition:
        message, remedy = "beyond 16 passes a token is worth less than two thirds of a new one", "or take fewer passes"
        remedy = f"set mix.allow_repetition: true if you mean it, {remedy}"
        yield Problem("mix.max_epochs", message, remedy, f"{config.max_epochs:g}")
    names, lengths = [name for name, _ in sources], len(config.lengths)
    yield from fixed_problems(config.fixed_rows, names, lengths=lengths, order=config.order)
    sources = [*sources, *((rows.name, rows.role) for rows in config.fixed_rows)]
    yield from _role_problems(config, sources)
    yield from _weight_problems("mix.weights", config.weights, sources)
    yield from _weight_problems("mix.anneal.weights", config.anneal.weights if config.anneal else None, sources)
    if config.temperature != 1 and config.weights != "proportional":
        message = "flattens proportional weights, and `mix.weights` is not proportional"
        yield Problem("mix.temperature", message, "leave one of them out", f"{config.temperature:g}")
    if config.is_megatron:
        yield from _megatron_problems(config)


def timing_problems(config: MixConfig, *, total_steps: int, tokens_per_step: int) -> Iterator[Problem]:
    """Everything in the settings that cannot work in a run of ``total_steps`` batches of ``tokens_per_step``."""
    amounts = {"total_steps": total_steps, "tokens_per_step": tokens_per_step}
    if isinstance(config.sequence_length, tuple):
        yield from _curriculum_problems("mix.sequence_length", config.sequence_length, amounts)
        yield from _division_problems(config.sequence_length, tokens_per_step)
    if isinstance(config.domain_share, tuple):
        yield from _curriculum_problems("mix.domain_share", config.domain_share, amounts)
    yield from _anneal_problems(config, amounts)


def _curriculum_problems(
    path: str, parts: Sequence[LengthPhase | SharePhase], amounts: dict[str, int]
) -> Iterator[Problem]:
    if not parts:
        yield Problem(path, "the list is empty", "give at least one part")
    before = 0
    for index, part in enumerate(parts):
        place = f"{path}[{index}].until"
        if part.until is None:
            if index < len(parts) - 1:
                yield Problem(place, "only the last part may go on to the end of the run", "say where this one ends")
            continue
        if part.until.unit == "seconds":
            yield Problem(place, "would differ from run to run: it may not depend on time", "use %, steps or tokens")
            continue
        end = part.until.in_steps(**amounts)
        if end <= before:
            yield Problem(
                place, f"is step {end}, and the part before it ends at {before}", "give a later end", str(part.until)
            )
        elif end > amounts["total_steps"]:
            message = f"is step {end} of a run of {amounts['total_steps']} steps"
            yield Problem(place, message, "give an earlier end", str(part.until))
        elif index == len(parts) - 1 and end < amounts["total_steps"]:
            message = f"is step {end}, and nothing says what follows in a run of {amounts['total_steps']} steps"
            yield Problem(place, message, "leave it out, or add a part", str(part.until))
        before = max(before, end)


def _division_problems(parts: Sequence[LengthPhase], tokens_per_step: int) -> Iterator[Problem]:
    if len({part.length for part in parts}) < len(parts):
        yield Problem("mix.sequence_length", "names a length twice", "give each length one part of the run")
    for index, part in enumerate(parts):
        if tokens_per_step % part.length:
            longest = max(part.length for part in parts)
            message = f"{tokens_per_step:,} tokens in a batch are not a whole number of rows of {part.length:,}"
            remedy = f"use lengths that divide each other, and a train.batch_tokens that is a multiple of {longest}"
            yield Problem(f"mix.sequence_length[{index}].length", message, remedy, str(part.length))


def _anneal_problems(config: MixConfig, amounts: dict[str, int]) -> Iterator[Problem]:
    anneal = config.anneal
    if anneal is None:
        return
    if anneal.domain_share is None and anneal.weights is None:
        yield Problem("mix.anneal", "changes nothing", "give it a domain_share or weights")
    if anneal.last.unit == "seconds":
        yield Problem("mix.anneal.last", "may not depend on time", "use %, steps or tokens", str(anneal.last))
    elif not 0 < anneal.last.in_steps(**amounts) <= amounts["total_steps"]:
        message = f"is {anneal.last.in_steps(**amounts)} of {amounts['total_steps']} steps"
        yield Problem("mix.anneal.last", message, "give at least one step and at most the whole run", str(anneal.last))


def _role_problems(config: MixConfig, sources: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    """Shares of roles that no source has, and a control without anything to train on."""
    roles = {role for _, role in sources}
    if not roles & {"domain", "replay"}:
        return
    if config.control:
        if "replay" not in roles:
            message = "the control trains on replay alone, and no source has that role"
            yield Problem("mix.control", message, "add a source with `role: replay`", "true")
        return
    asked: dict[str, float] = {}
    if isinstance(config.domain_share, float):
        asked["mix.domain_share"] = config.domain_share
    elif isinstance(config.domain_share, tuple):
        asked |= {f"mix.domain_share[{index}].share": part.share for index, part in enumerate(config.domain_share)}
    if config.anneal is not None and config.anneal.domain_share is not None:
        asked["mix.anneal.domain_share"] = config.anneal.domain_share
    for path, share in asked.items():
        for role, part in (("replay", 1 - share), ("domain", share)):
            if part > 0 and role not in roles:
                remedy = f"add a source with `role: {role}`, or set domain_share to {1 if role == 'replay' else 0}"
                yield Problem(path, f"asks for {part:.0%} {role} text, and no source has that role", remedy, str(share))


def _weight_problems(path: str, weights: Any, sources: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    if not isinstance(weights, dict):
        return
    roles = dict(sources)
    for name in weights:
        if roles.get(name) not in ("domain", "replay"):
            message = "trains nothing: its role is `watch`" if name in roles else "is no source of this recipe"
            known = ", ".join(name for name, role in sources if role != "watch")
            yield Problem(f"{path}.{name}", message, f"sources that are trained: {known}", f"{weights[name]:g}")
    for role in ("domain", "replay"):
        members = [name for name, of in sources if of == role]
        missing = [name for name in members if name not in weights]
        if missing and len(missing) < len(members):
            listed = ", ".join(f"`{name}`" for name in missing)
            yield Problem(path, f"has no weight for {listed}", f"give a weight to every {role} source, or to none")


def _weighted(config: MixConfig) -> Iterator[tuple[str, bool]]:
    """The settings that weigh sources against each other, which one pass over everything cannot have."""
    if config.order == "megatron_one_pass":
        yield "domain_share", config.domain_share not in (None, "proportional")
        yield "weights", config.weights != "proportional"
        yield "temperature", config.temperature != 1
        yield "control", config.control


def _megatron_problems(config: MixConfig) -> Iterator[Problem]:
    changed = [
        name
        for name, differs in (
            ("sequence_length", isinstance(config.sequence_length, tuple)),
            ("domain_share", isinstance(config.domain_share, tuple)),
            ("anneal", config.anneal is not None),
            ("balance", config.balance is not None),
            ("packing", "packing" in config.model_fields_set),
            *_weighted(config),
        )
        if differs
    ]
    for name in changed:
        message = "Megatron's order knows no such thing"
        value = "a list" if name in ("sequence_length", "domain_share") else ""
        yield Problem(f"mix.{name}", message, "leave it out, or set mix.order: shuffled", value)
