"""The mix stage: token shards to packed rows, and packed rows to one written-down training order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepen.engine.map_parts import clear_ledger, map_parts
from deepen.formats.documents.documents import document_files
from deepen.formats.files.arrays import Array
from deepen.formats.files.atomic import FileEntry, write_json
from deepen.formats.manifest import Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.new_token_counts import count_new_tokens
from deepen.formats.tokens.order import Order, Segments, write_order, write_segments
from deepen.formats.tokens.packs import stage_with_shard
from deepen.formats.unchanged import check_inputs
from deepen.mix.config import MixConfig
from deepen.mix.counts import mix_counts, tally
from deepen.mix.exposures import exposure_line, exposures
from deepen.mix.order.build import OrderBuilder, Supply
from deepen.mix.order.megatron import MegatronPart, blended_blocks, index_source
from deepen.mix.order.mixture import MIXTURE, Mixture, Stretch, open_supplies, segments_of, stored_supplies
from deepen.mix.packing.sources import PackPart, pack_source
from deepen.mix.phases import SourceTokens, length_needs, phases_of, plan_stretches
from deepen.mix.summary import exhausted_error, repetition_warnings, summary
from deepen.progress import say, track

FORMAT = 2
ORDER = "order/000.u64"
_WORTH_A_PROCESS = 10_000_000
"""Documents that are packed in the time that starting worker processes takes."""


def mix(config: MixConfig, job: StageJob, *, batch_tokens: int, num_batches: int) -> Manifest:
    """Pack every source of ``job.inputs["tokenize"]`` and write the order of ``num_batches`` batches.

    A batch has the number of rows that comes nearest to ``batch_tokens``. Writes ``packs/``, ``order/000.u64``,
    ``segments.json`` and ``mixture.json``, and for ``config.fixed_rows`` ``shards/`` and ``documents/``. With
    ``config.balance`` categories are read from ``job.inputs["curate"]``.
    Raises ``SourceError`` when a role that is asked for has no tokens, or a source would be repeated more than
    ``config.max_epochs`` times.
    """
    assert batch_tokens > 0 and num_batches > 0, "an order has at least one batch"
    check_inputs(job, {"tokenize": [""], "curate": ["documents/"] if config.balance is not None else []})
    begin_stage(job, stage="mix", format_number=FORMAT, config=config)
    fixed = _fixed_rows(config, job)
    sources = _sources(config, job, fixed)
    stretches = plan_stretches(config, sources, num_batches=num_batches, batch_tokens=batch_tokens)
    packed = _pack_sources(config, job, sources, stretches)
    mixture = _mixture(config, job, sources, stretches, packed)
    supplies = open_supplies(job.out, mixture)
    _say_what_is_empty(mixture)

    entry = _write_order(config, job, mixture, supplies)
    segments = write_segments(job.out, Segments(sources=mixture.sources, segments=segments_of(mixture, ORDER)))
    described = write_json(job.out / MIXTURE, mixture.model_dump(mode="json"))
    ends = [stretch.first_batch + stretch.num_batches for stretch in stretches]
    # From the file as written, not from the builder's memory.
    counts = mix_counts(mixture, supplies, packed, tally(Order.open(job.out), supplies, ends))
    say(summary(counts))
    for warning in repetition_warnings(counts):
        say(warning)
    new_tokens = exposures(job.inputs["tokenize"].path, counts["sources"], _new_tokens_in(job, fixed))
    if new_tokens is not None:
        counts["new_tokens"] = new_tokens
        say(exposure_line(new_tokens))
    if fixed:
        counts["fixed_rows"] = {name: result["counts"] for name, result in fixed.items()}
    made = (file for result in (*fixed.values(), *packed) for file in result["files"])
    files = [entry, segments, described, *(FileEntry(**file) for file in made)]
    clear_ledger(_ledger(job))
    return finish_stage(job, stage="mix", format_number=FORMAT, config=config, files=files, counts=counts)


def _fixed_rows(config: MixConfig, job: StageJob) -> dict[str, dict[str, Any]]:
    """Shards made of ``config.fixed_rows``: file entries and counts by name, as ``write_fixed_rows`` returns them."""
    if not config.fixed_rows:
        return {}
    from deepen.mix.fixed.rows import FixedPart, fixed_line, write_fixed_rows

    tokenize = job.inputs["tokenize"]
    parts = [
        FixedPart(
            **rows.model_dump(),
            run_tokenizer=tokenize.path / "tokenizer",
            vocabulary_size=tokenize.counts["vocabulary_size"],
            sequence_length=config.longest,
            out=job.out,
        )
        for rows in config.fixed_rows
    ]
    results = map_parts(
        write_fixed_rows, parts, workers=job.workers, ledger=_ledger(job) / "fixed", what="fixed rows", unit="sets",
        sizes=[1] * len(parts),
    )  # fmt: skip
    named = {part.name: result for part, result in zip(parts, results, strict=True)}
    for name, result in named.items():
        say(fixed_line(name, result["counts"]))
    return named


def _new_tokens_in(job: StageJob, fixed: Iterable[str]) -> dict[str, Array]:
    """How often each new token stands in fixed rows, for a vocabulary that grew."""
    tokenize = job.inputs["tokenize"].counts
    if "new_tokens" not in tokenize:
        return {}
    first, size = tokenize["base_vocabulary_size"], tokenize["vocabulary_size"]
    return {name: count_new_tokens(job.out / "shards" / name, first, size) for name in fixed}


def _sources(config: MixConfig, job: StageJob, fixed: Mapping[str, Any]) -> list[SourceTokens]:
    """The sources that are trained, with their tokens as they are in the shards; fixed rows come last."""
    tokenize = job.inputs["tokenize"]
    shards = tokenize.path / "shards"
    encoded = [
        SourceTokens(name, source["role"], IndexedDataset.open(shards / name).num_tokens)
        for name, source in tokenize.counts["sources"].items()
    ]
    return encoded + [
        SourceTokens(rows.name, rows.role, fixed[rows.name]["counts"]["tokens"]) for rows in config.fixed_rows
    ]


def _ledger(job: StageJob) -> Path:
    return job.out / ".ledger"


def _pack_sources(
    config: MixConfig, job: StageJob, sources: Sequence[SourceTokens], stretches: Sequence[Stretch]
) -> list[dict[str, Any]]:
    """Packed rows of every source: file entries, tokens and supplies, as ``pack_source`` returns them."""
    stages = [stage_with_shard(source.name, job.inputs["tokenize"].path, job.out) for source in sources]
    shards = [stage / "shards" / source.name for stage, source in zip(stages, sources, strict=True)]
    sizes = [IndexedDataset.open(shard).num_sequences for shard in shards]
    workers = job.workers if sum(sizes) > _WORTH_A_PROCESS else 1
    how: dict[str, Any] = {
        "workers": workers, "ledger": _ledger(job), "what": "packing", "unit": "documents", "sizes": sizes,
    }  # fmt: skip
    pairs = list(zip(sources, shards, strict=True))
    if config.is_megatron:
        return map_parts(index_source, [_megatron_part(config, job, *pair, stretches[0]) for pair in pairs], **how)
    return map_parts(pack_source, [_pack_part(config, job, *pair, stretches) for pair in pairs], **how)


def _pack_part(
    config: MixConfig, job: StageJob, source: SourceTokens, shard: Path, stretches: Sequence[Stretch]
) -> PackPart:
    needs = length_needs(stretches, source.name, source.role)
    is_fixed = source.name in {rows.name for rows in config.fixed_rows}
    curated = job.inputs["curate"].path / "documents" if config.balance is not None and not is_fixed else None
    return PackPart(
        shard=shard,
        out=job.out,
        source=source.name,
        packing="one_per_row" if is_fixed else config.packing,
        lengths=tuple(needs),
        parts=tuple(needs.values()),
        seed=job.seed,
        ids=shard.parents[1] / "documents" / f"{source.name}.npy",
        documents=tuple(document_files(curated, source.name)) if curated is not None else (),
    )


def _megatron_part(
    config: MixConfig, job: StageJob, source: SourceTokens, shard: Path, stretch: Stretch
) -> MegatronPart:
    return MegatronPart(
        shard=shard,
        out=job.out,
        source=source.name,
        share=stretch.share_of(source.name, source.role),
        num_rows=None if config.order == "megatron_one_pass" else stretch.num_batches * stretch.rows_per_batch,
        sequence_length=stretch.sequence_length,
        seed=job.seed,
        max_epochs=config.max_epochs,
    )


def _mixture(
    config: MixConfig,
    job: StageJob,
    sources: Sequence[SourceTokens],
    stretches: Sequence[Stretch],
    packed: Sequence[dict[str, Any]],
) -> Mixture:
    """All that the order is made from."""
    supplies = [
        supply
        for source, result in zip(sources, packed, strict=True)
        for supply in stored_supplies(config, source, result["supplies"])
    ]
    return Mixture(
        seed=job.seed,
        max_epochs=config.max_epochs,
        order=config.order,
        isolated=config.is_isolated,
        sources=tuple(source.name for source in sources),
        supplies=tuple(supplies),
        phases=tuple(stretches),
    )


def _say_what_is_empty(mixture: Mixture) -> None:
    """Name sources that take no part, and lengths for which a source has no document."""
    for name in mixture.sources:
        mine = [supply for supply in mixture.supplies if supply.source == name]
        if not any(supply.tokens for supply in mine):
            say(f"mix: source `{name}` has no tokens and takes no part")
            continue
        for length in dict.fromkeys(supply.sequence_length for supply in mine):
            if not any(supply.rows for supply in mine if supply.sequence_length == length):
                say(f"mix: source `{name}` has no document left for rows of {length}; others of its role fill in")


def _write_order(config: MixConfig, job: StageJob, mixture: Mixture, supplies: Sequence[Supply]) -> FileEntry:
    num_rows = sum(phase.num_batches * phase.rows_per_batch for phase in mixture.phases)
    if config.is_megatron:
        shares = [(name, mixture.phases[0].share_of(name, mixture.roles[name])) for name in mixture.sources]
        blocks = blended_blocks(job.out, shares, num_rows, one_pass=config.order == "megatron_one_pass")
        return write_order(job.out / ORDER, _tracked(blocks, num_rows), job.out)
    # UniMax fills sources up to their caps, so a filled one must not stop the run a row before its end.
    weights = (config.weights, config.anneal.weights if config.anneal is not None else None)
    builder = OrderBuilder(
        supplies, max_epochs=config.max_epochs, seed=job.seed, heirs="role" if "unimax" in weights else "none"
    )
    blocks = builder.blocks(phases_of(mixture.phases, mixture.supplies))
    entry = write_order(job.out / ORDER, _tracked(blocks, num_rows), job.out)
    if builder.num_rows < num_rows:  # the order is shorter than the run: it is never a stage's result
        raise exhausted_error(builder, config, mixture.phases, num_rows)
    return entry


def _tracked(blocks: Iterator[Array], num_rows: int) -> Iterator[Array]:
    """The order's blocks, with progress."""
    with track("ordering", num_rows, "rows") as tracker:
        for block in blocks:
            yield block
            tracker.advance(len(block))
