"""The mix stage: token shards to packed rows, and packed rows to one written-down training order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.engine.map_parts import clear_ledger, map_parts
from deepen.errors import SourceError
from deepen.formats.arrays import open_array
from deepen.formats.atomic import FileEntry
from deepen.formats.manifest import Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.megatron import IndexedDataset
from deepen.formats.order import Segment, Segments, write_order, write_segments
from deepen.formats.packs import tokens_per_row, write_packs
from deepen.mix.config import MixConfig
from deepen.mix.order import OrderBuilder, Supply
from deepen.mix.packing import pack
from deepen.mix.summary import exhausted_error, summary
from deepen.progress import say, track

FORMAT = 1
_DEFAULT_DOMAIN_SHARE = 0.7
_ORDER = "order/000.u64"
_WORTH_A_PROCESS = 10_000_000
"""Documents that are packed in the time that starting worker processes takes."""


def mix(config: MixConfig, job: StageJob, *, rows_per_batch: int, num_batches: int) -> Manifest:
    """Pack every source of ``job.inputs["tokenize"]`` and write the order of ``num_batches`` batches.

    Writes ``packs/``, ``order/000.u64`` and ``segments.json``. Raises ``SourceError`` when a role that is asked for has
    no tokens, or a source would be repeated more than ``config.max_epochs`` times.
    """
    assert rows_per_batch > 0 and num_batches > 0, "an order has at least one batch"
    begin_stage(job, stage="mix", format_number=FORMAT, config=config)
    roles = {name: source["role"] for name, source in job.inputs["tokenize"].counts["sources"].items()}
    packed = _pack_sources(config, job, list(roles))
    supplies = [_supply(job.out, name, role) for name, role in roles.items()]
    share = domain_share(config, supplies)

    builder = OrderBuilder(supplies, domain_share=share, max_epochs=config.max_epochs, seed=job.seed)
    num_rows = rows_per_batch * num_batches
    entry = write_order(job.out / _ORDER, _tracked(builder, config, rows_per_batch, num_rows), job.out)
    segment = Segment(
        file=_ORDER,
        first_batch=0,
        num_batches=num_batches,
        sequence_length=config.sequence_length,
        rows_per_batch=rows_per_batch,
    )
    segments = write_segments(job.out, Segments(sources=tuple(roles), segments=(segment,)))

    counts = {
        "sources": _counts(builder, packed, config.sequence_length),
        "sequence_length": config.sequence_length,
        "rows_per_batch": rows_per_batch,
        "num_batches": num_batches,
        "domain_share": share,
    }
    say(summary(counts))
    files = [entry, segments, *(FileEntry(**file) for result in packed for file in result["files"])]
    clear_ledger(_ledger(job))
    return finish_stage(job, stage="mix", format_number=FORMAT, config=config, files=files, counts=counts)


def domain_share(config: MixConfig, supplies: Sequence[Supply]) -> float:
    """The share of tokens from domain sources, default filled in; raises ``SourceError`` if it is impossible."""
    named = {role: [supply.name for supply in supplies if supply.role == role] for role in ("domain", "replay")}
    tokens = {role: sum(supply.num_tokens for supply in supplies if supply.role == role) for role in named}
    share = config.domain_share
    if share is None:
        share = _DEFAULT_DOMAIN_SHARE if named["replay"] else 1.0
    for role, asked in (("domain", share), ("replay", 1 - share)):
        if asked > 0 and tokens[role] == 0:
            sources = ", ".join(f"`{name}`" for name in named[role])
            what = f"{role} sources {sources} hold no tokens" if named[role] else f"no source has the role {role}"
            other = {"domain": "0", "replay": "1"}[role]
            raise SourceError(
                f"mix: {asked:.0%} of the tokens are asked from {role} sources, and {what}",
                hint=f"look at what `curate` dropped, add such a source, or set mix.domain_share: {other}",
            )
    for supply in supplies:
        if supply.num_tokens == 0:
            say(f"mix: source `{supply.name}` has no tokens and takes no part")
    return share


@dataclass(frozen=True)
class PackPart:
    """One source to pack."""

    shard: Path
    out: Path
    source: str
    sequence_length: int
    packing: str


def pack_source(part: PackPart) -> dict[str, Any]:
    """Pack one source and write its arrays; returns its file entries and counts."""
    lengths = IndexedDataset.open(part.shard).lengths
    rows, segments = pack(lengths, part.sequence_length, part.packing)
    files = write_packs(part.out, part.source, rows, segments)
    return {
        "files": [file.model_dump() for file in files],
        "shard_tokens": int(lengths.sum(dtype=np.int64)),
        "packed_tokens": int(segments[:, 2].sum(dtype=np.int64)),
        "rows": len(rows) - 1,
        "documents": int(np.count_nonzero(lengths)),
        "pieces": len(segments),
    }


def _ledger(job: StageJob) -> Path:
    return job.out / ".ledger"


def _pack_sources(config: MixConfig, job: StageJob, names: Sequence[str]) -> list[dict[str, Any]]:
    shards = job.inputs["tokenize"].path / "shards"
    parts = [PackPart(shards / name, job.out, name, config.sequence_length, config.packing) for name in names]
    sizes = [IndexedDataset.open(part.shard).num_sequences for part in parts]
    workers = job.workers if sum(sizes) > _WORTH_A_PROCESS else 1
    return map_parts(
        pack_source, parts, workers=workers, ledger=_ledger(job), what="packing", unit="documents", sizes=sizes
    )


def _supply(out: Path, name: str, role: str) -> Supply:
    rows, segments = (open_array(out / "packs" / f"{name}.{kind}.npy") for kind in ("rows", "segments"))
    return Supply(name, role, tokens_per_row(rows, segments))


def _tracked(
    builder: OrderBuilder, config: MixConfig, rows_per_batch: int, num_rows: int
) -> Iterator[npt.NDArray[np.uint64]]:
    """The order's blocks, with progress; raises ``SourceError`` when a source is spent before the last row."""
    with track("ordering", num_rows, "rows") as tracker:
        for block in builder.blocks(num_rows):
            yield block
            tracker.advance(len(block))
    if builder.exhausted is not None:
        raise exhausted_error(builder, config, rows_per_batch, num_rows)


def _counts(builder: OrderBuilder, packed: Sequence[dict[str, Any]], sequence_length: int) -> dict[str, Any]:
    counts = {}
    for supply, drawn, result in zip(builder.supplies, builder.drawn(), packed, strict=True):
        rows, tokens = supply.num_rows, result["packed_tokens"]
        counts[supply.name] = {
            "role": supply.role,
            "documents": result["documents"],
            "cuts": result["pieces"] - result["documents"],
            "shard_tokens": result["shard_tokens"],
            "packed_tokens": tokens,
            "rows": rows,
            "padding": rows * sequence_length - tokens,
            "order_rows": drawn.rows,
            "order_tokens": drawn.tokens,
            "rows_seen": drawn.seen_rows,
            "rows_unused": rows - drawn.seen_rows,
            "seen_tokens": drawn.seen_tokens,
            "unused_tokens": tokens - drawn.seen_tokens,
            "epochs": round(drawn.rows / rows, 6) if rows else 0.0,
        }
    return counts
