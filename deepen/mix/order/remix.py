"""A changed mixture from some batch on: a segment that is appended to the order, never an edit of the past.

Every supply goes on at its own cursor, which is counted from the order itself: what was not seen yet comes first, and
nothing is skipped. Where the new shares ask a source for more than ``max_epochs`` passes, the cap wins: the others of
its role take over its share, then the other role, and the file says from which step on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import RunError, SourceError
from deepen.formats.files.arrays import Array
from deepen.formats.files.atomic import write_json
from deepen.formats.tokens.order import Order, Segments, appended_files, read_segment_file, write_order
from deepen.mix.counts import rows_drawn
from deepen.mix.order.build import OrderBuilder
from deepen.mix.order.mixture import Mixture, Stretch, open_supplies, read_mixture, segments_of
from deepen.mix.phases import ROLES, phases_of


@dataclass(frozen=True)
class Change:
    """What is to be mixed otherwise, and from when on."""

    batch: int
    """The first batch that is changed, counted from 0."""
    domain_share: float
    """Share of tokens from domain sources from there to the end of the run."""
    weights: Mapping[str, float] | None = None
    """Weights of all sources of a role relative to each other; a role without any keeps what it had."""
    reason: str = ""
    parent_step: int = 0
    """The newest checkpoint that the decision rests on; going back beyond it makes the change void."""


def remix(mix_directory: Path, order_directory: Path, change: Change) -> tuple[Path, Segments]:
    """Append the changed rest of the order under ``order_directory`` (``train/order``); returns its file and contents.

    Raises ``RunError`` when the change cannot be made there, ``SourceError`` when nothing is left to draw.
    """
    mixture = read_mixture(mix_directory)
    files = appended_files(order_directory)
    order = Order.open(mix_directory, *files)
    end = mixture.phases[-1].first_batch + mixture.phases[-1].num_batches
    _check(change, mixture, order.num_batches, end)
    stretches = [_changed(stretch, change, mixture) for stretch in _rest(mixture.phases, change.batch)]

    supplies = open_supplies(mix_directory, mixture)
    builder = OrderBuilder(
        supplies,
        max_epochs=mixture.max_epochs,
        seed=mixture.seed,
        heirs="run",
        drawn=rows_drawn(order, supplies, change.batch),  # from the order as trained, earlier changes included
    )
    number = int(files[-1].stem) + 1 if files else 1
    name = f"{number:03d}.u64"
    num_rows = sum(stretch.num_batches * stretch.rows_per_batch for stretch in stretches)
    blocks = _complete(builder, builder.blocks(phases_of(stretches, mixture.supplies)), num_rows)
    write_order(order_directory / name, blocks, order_directory)  # before its table, which makes it part of the order
    table = Segments(
        sources=order.sources,
        segments=segments_of(mixture.model_copy(update={"phases": tuple(stretches)}), name),
        parent=order.digest(change.batch),  # training refuses the segment if other batches came before it
        parent_step=change.parent_step,
        reason=change.reason,
        domain_share=change.domain_share,
        notes=tuple(_notes(builder, stretches, mixture.max_epochs)),
    )
    path = order_directory / f"{number:03d}.json"
    write_json(path, table.model_dump(mode="json"))
    return path, table


def domain_share_at(mix_directory: Path, order_directory: Path, batch: int) -> tuple[float, float]:
    """Shares of tokens from domain sources at a batch: as the mixture was planned, and as it is after the changes.

    Raises ``RunError`` when there is no replay source that could be given more.
    """
    mixture = read_mixture(mix_directory)
    if not any(supply.role == "replay" and supply.rows for supply in mixture.supplies):
        raise RunError("there is no replay source with text", hint="add a source of `role: replay`")
    stretches = mixture.phases
    planned = next((s for s in reversed(stretches) if s.first_batch <= batch), stretches[0])
    begin, end = planned.domain_share
    share = begin + (end - begin) * (batch - planned.first_batch) / max(1, planned.num_batches)
    changes = [read_segment_file(path) for path in appended_files(order_directory)]
    known = [c.domain_share for c in changes if c.domain_share is not None and c.segments[0].first_batch <= batch]
    return share, (known[-1] if known else share)


def _check(change: Change, mixture: Mixture, num_batches: int, end: int) -> None:
    if mixture.order != "shuffled":
        raise RunError("Megatron's order is made as a whole and cannot be changed", hint="use mix.order: shuffled")
    if not 0 <= change.batch < end or change.batch > num_batches:
        raise RunError(f"there is no batch {change.batch} to change: the order has {min(end, num_batches)}")
    unknown = [name for name in change.weights or {} if name not in mixture.roles]
    if unknown:
        raise RunError(f"`{unknown[0]}` is no source of this mix", hint=f"its sources are {', '.join(mixture.roles)}")
    if any(weight <= 0 for weight in (change.weights or {}).values()):
        raise RunError("a weight must be above 0", hint="leave a role's weights out to keep them as they are")


def _rest(stretches: Sequence[Stretch], batch: int) -> list[Stretch]:
    """The stretches from ``batch`` on."""
    rest = []
    for stretch in stretches:
        end = stretch.first_batch + stretch.num_batches
        if end > batch:
            first = max(batch, stretch.first_batch)
            rest.append(stretch.model_copy(update={"first_batch": first, "num_batches": end - first}))
    return rest


def _changed(stretch: Stretch, change: Change, mixture: Mixture) -> Stretch:
    weights, roles = dict(stretch.weights), mixture.roles
    for role in ROLES:
        given = {name: weight for name, weight in (change.weights or {}).items() if roles[name] == role}
        members = [name for name in weights if roles[name] == role]
        missing = [name for name in members if name not in given]
        if given and missing:
            raise RunError(f"`{missing[0]}` has no weight", hint=f"give a weight to every {role} source, or to none")
        if given:
            weights |= {name: weight / sum(given.values()) for name, weight in given.items()}
    share = (change.domain_share, change.domain_share)  # a ramp ends here: the change is a constant
    return stretch.model_copy(update={"domain_share": share, "weights": weights})


def _complete(builder: OrderBuilder, blocks: Iterator[Array], num_rows: int) -> Iterator[Array]:
    """The blocks; raises before the file is finished when they are not all."""
    yield from blocks
    if builder.num_rows < num_rows:
        raise SourceError(
            "mix: every source was passed mix.max_epochs times before the end of the run",
            hint="raise mix.max_epochs in a new run, or train on fewer tokens",
        )


def _notes(builder: OrderBuilder, stretches: Sequence[Stretch], max_epochs: float) -> Iterator[str]:
    """Where the cap won."""
    for index, num_rows in builder.spent.items():
        step = _batch_of_row(stretches, num_rows) + 1
        supply = builder.supplies[index]
        alive = [
            other.role == supply.role and other.num_rows > 0 and number not in builder.spent
            for number, other in enumerate(builder.supplies)
        ]
        heirs = f"other {supply.role} sources take" if any(alive) else "the other role takes"
        yield f"from step {step} on `{supply.name}` is spent ({max_epochs:g} passes): {heirs} over its share"


def _batch_of_row(stretches: Sequence[Stretch], num_rows: int) -> int:
    for stretch in stretches:
        in_stretch = stretch.num_batches * stretch.rows_per_batch
        if num_rows < in_stretch:
            return stretch.first_batch + num_rows // stretch.rows_per_batch
        num_rows -= in_stretch
    return stretches[-1].first_batch + stretches[-1].num_batches
