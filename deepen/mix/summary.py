"""What mix tells its user: the table at the end, and why an order cannot be made."""

from __future__ import annotations

import math
from typing import Any

from deepen.errors import SourceError
from deepen.mix.config import MixConfig
from deepen.mix.order import OrderBuilder
from deepen.progress import readable

_COLUMNS = ("source", "role", "tokens", "rows", "padding", "cuts", "in order", "epochs", "share", "asked")


def summary(counts: dict[str, Any]) -> str:
    """One line per source: what it holds, what the order takes of it, and its share of the trained tokens."""
    sources = counts["sources"]
    total = sum(source["order_tokens"] for source in sources.values())
    role_tokens = {
        role: sum(source["packed_tokens"] for source in sources.values() if source["role"] == role)
        for role in ("domain", "replay")
    }
    role_shares = {"domain": counts["domain_share"], "replay": 1 - counts["domain_share"]}
    lines: list[tuple[str, ...]] = [_COLUMNS]
    for name, source in sources.items():
        held = role_tokens[source["role"]]
        asked = role_shares[source["role"]] * source["packed_tokens"] / held if held else 0.0
        slots = source["rows"] * counts["sequence_length"]
        lines.append(
            (
                name, source["role"], readable(source["packed_tokens"]), readable(source["rows"]),
                f"{source['padding'] / slots:.2%}" if slots else "-", readable(source["cuts"]),
                readable(source["order_tokens"]), f"{source['epochs']:.2f}",
                f"{source['order_tokens'] / total:.2%}", f"{asked:.2%}",
            )
        )  # fmt: skip
    batches = (
        f"{counts['num_batches']} batches of {counts['rows_per_batch']} rows of {counts['sequence_length']} tokens"
    )
    return f"mix: {batches}\n{_aligned(lines)}"


def _aligned(lines: list[tuple[str, ...]]) -> str:
    """Columns of equal width: names to the left, numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  " + "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )  # fmt: skip


def exhausted_error(builder: OrderBuilder, config: MixConfig, rows_per_batch: int, num_rows: int) -> SourceError:
    """Why the order stopped: one source is spent. Names what is there, what is asked, and every way out."""
    assert builder.exhausted is not None
    drawn = builder.drawn()
    spent, taken = builder.supplies[builder.exhausted], drawn[builder.exhausted]
    rows_made = max(1, sum(source.rows for source in drawn))
    asked = taken.tokens * num_rows / rows_made
    epochs = math.ceil(10 * asked / spent.num_tokens + 0.5) / 10
    batches = sum(source.rows for source in drawn) // rows_per_batch
    most = batches * rows_per_batch * config.sequence_length
    ways = [f"set train.tokens to at most {most} ({batches} batches)"] if batches else []
    ways += [
        f"set mix.max_epochs to {epochs:g}",
        f"add documents to `{spent.name}`",
        *_share_that_fits(builder, config, num_rows),
    ]
    return SourceError(
        f"mix: source `{spent.name}` has {readable(spent.num_tokens)} tokens, and the run asks it for about "
        f"{readable(asked)}: more than mix.max_epochs ({config.max_epochs:g}) passes",
        hint="; or ".join(ways),
    )


def _share_that_fits(builder: OrderBuilder, config: MixConfig, num_rows: int) -> list[str]:
    """The domain share at which the spent role lasts, if there is another role to take over."""
    assert builder.exhausted is not None
    roles = {supply.role for supply in builder.supplies if supply.num_tokens}
    if len(roles) < 2:
        return []
    role = builder.supplies[builder.exhausted].role
    held = sum(supply.num_tokens for supply in builder.supplies if supply.role == role)
    fits = config.max_epochs * held / (num_rows * config.sequence_length)
    if role == "domain":
        return [f"set mix.domain_share to at most {math.floor(100 * fits) / 100:g}"]
    return [f"set mix.domain_share to at least {math.ceil(100 * (1 - fits)) / 100:g}"]
