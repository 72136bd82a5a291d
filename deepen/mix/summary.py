"""What mix tells its user: the table at the end, warnings about repeats, and why an order cannot be made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from deepen.errors import SourceError
from deepen.mix.config import WORTHWHILE_EPOCHS, MixConfig
from deepen.mix.order.build import OrderBuilder
from deepen.mix.order.mixture import Stretch
from deepen.mix.phases import effective_tokens
from deepen.progress import aligned, readable

_COLUMNS = ("source", "role", "tokens", "rows", "padding", "cuts", "in order", "epochs", "share")
_BARS = " ▁▂▃▄▅▆▇█"


def summary(counts: dict[str, Any]) -> str:
    """One line per source: what it holds, what the order takes of it, and by phase its share beside the one asked."""
    sources, phases = counts["sources"], counts["phases"]
    total = sum(source["order_tokens"] for source in sources.values())
    asked = ("asked",) if len(phases) == 1 else tuple(_title(phase) for phase in phases)
    lines: list[tuple[str, ...]] = [(*_COLUMNS, *asked)]
    for name, source in sources.items():
        shares = [f"{phases[0]['asked'][name]:.2%}"]
        if len(phases) > 1:
            shares = [f"{phase['realised'][name]:.1%} of {phase['asked'][name]:.1%}" for phase in phases]
        lines.append(
            (
                name, source["role"], readable(source["shard_tokens"]), readable(source["rows"]),
                f"{source['padding'] / source['slots']:.2%}" if source["slots"] else "-", readable(source["cuts"]),
                readable(source["order_tokens"]), f"{source['epochs']:.2f}",
                f"{source['order_tokens'] / total:.2%}", *shares,
            )
        )  # fmt: skip
    text = "\n  ".join([f"mix: {_batches(phases)}", *aligned(lines, 2)])
    return text if _is_constant(phases) else f"{text}\n{_chart(counts['shares_over_time'])}"


def _title(phase: dict[str, Any]) -> str:
    return f"steps {phase['first_batch'] + 1}-{phase['first_batch'] + phase['num_batches']}"


def _batches(phases: Sequence[dict[str, Any]]) -> str:
    """How many batches of what shape, in the order of the run."""
    shapes: list[list[int]] = []
    for phase in phases:
        shape = [phase["rows_per_batch"], phase["sequence_length"]]
        if shapes and shapes[-1][1:] == shape:
            shapes[-1][0] += phase["num_batches"]
        else:
            shapes.append([phase["num_batches"], *shape])
    return ", then ".join(f"{number} batches of {rows} rows of {length} tokens" for number, rows, length in shapes)


def _is_constant(phases: Sequence[dict[str, Any]]) -> bool:
    begin, end = phases[0]["domain_share"]
    return begin == end and all(
        phase["asked"] == phases[0]["asked"] and phase["domain_share"] == phases[0]["domain_share"] for phase in phases
    )


def _chart(shares: dict[str, list[float]]) -> str:
    """A bar for each part of the run and source: its share of the tokens there, a full bar being all of them."""
    width = max(len(name) for name in shares)
    lines = [
        f"  {name.ljust(width)}  {''.join(_BARS[math.ceil(share * (len(_BARS) - 1))] for share in values)}"
        for name, values in shares.items()
    ]
    return "\n".join(["  shares from the first step to the last:", *lines])


def repetition_warnings(counts: dict[str, Any]) -> Iterator[str]:
    """A line for each source that is repeated more often than it is worth."""
    for name, source in counts["sources"].items():
        if source["epochs"] > WORTHWHILE_EPOCHS:
            worth = effective_tokens(source["shard_tokens"], source["epochs"])
            yield (
                f"mix: `{name}` is passed {source['epochs']:.1f} times: its {readable(source['order_tokens'])} tokens "
                f"are worth about {readable(worth)} new ones (arXiv:2305.16264)"
            )


def exhausted_error(
    builder: OrderBuilder, config: MixConfig, stretches: Sequence[Stretch], num_rows: int
) -> SourceError:
    """Why the order stopped: a source is spent. Names what is there, what is asked, and every way out."""
    batches, most = _whole_batches(builder.num_rows, stretches)
    ways = [f"set train.tokens to at most {most} ({batches} batches)"] if batches else []
    if builder.exhausted is None or builder.exhausted < 0:
        return SourceError(
            f"mix: every source is spent after {batches} batches: mix.max_epochs ({config.max_epochs:g}) passes",
            hint="; or ".join([*ways, "raise mix.max_epochs", "add documents"]),
        )
    spent = builder.supplies[builder.exhausted]
    asked = (
        int(builder.drawn[builder.exhausted]) / spent.num_rows * spent.num_tokens * num_rows / max(1, builder.num_rows)
    )
    # What is asked is guessed from the part that was drawn: rounded up, and half a tenth more, to be enough.
    epochs = math.ceil(10 * asked / spent.num_tokens + 0.5) / 10
    ways += [
        f"set mix.max_epochs to {epochs:g}",
        f"add documents to `{spent.name}`",
        *_share_that_fits(builder, config, stretches),
    ]
    return SourceError(
        f"mix: source `{spent.name}` has {readable(spent.num_tokens)} tokens, and the run asks it for about "
        f"{readable(asked)}: more than mix.max_epochs ({config.max_epochs:g}) passes",
        hint="; or ".join(ways),
    )


def _whole_batches(num_rows: int, stretches: Sequence[Stretch]) -> tuple[int, int]:
    """How many batches so many rows fill, and their tokens, padding included."""
    batches = tokens = 0
    for stretch in stretches:
        whole = min(stretch.num_batches, num_rows // stretch.rows_per_batch)
        batches += whole
        tokens += whole * stretch.rows_per_batch * stretch.sequence_length
        num_rows -= whole * stretch.rows_per_batch
        if whole < stretch.num_batches:
            break
    return batches, tokens


def _share_that_fits(builder: OrderBuilder, config: MixConfig, stretches: Sequence[Stretch]) -> list[str]:
    """The domain share at which the spent role lasts, if the share is constant and there is another role."""
    assert builder.exhausted is not None
    roles = {supply.role for supply in builder.supplies if supply.num_tokens}
    if len(roles) < 2 or len(stretches) > 1 or len(set(stretches[0].domain_share)) > 1:
        return []
    role = builder.supplies[builder.exhausted].role
    held = sum(supply.num_tokens for supply in builder.supplies if supply.role == role)
    fits = config.max_epochs * held / sum(stretch.positions for stretch in stretches)
    if role == "domain":
        return [f"set mix.domain_share to at most {math.floor(100 * fits) / 100:g}"]
    return [f"set mix.domain_share to at least {math.ceil(100 * (1 - fits)) / 100:g}"]
