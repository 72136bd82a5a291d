"""Token shards without a recipe: files in, one Megatron pair for each input and all of them joined to ``dataset``.

The real stages do the work (ingest, then tokenize) in ``DIR/.work``, so every format, every check and every resume of
a run holds here too; the price is one copy of the text on disk while it runs. Nothing is curated: every document that
can be read is encoded.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepen.errors import DeepenError, Problem, RecipeError, RunError
from deepen.formats.documents.documents import document_files
from deepen.formats.files.atomic import FileEntry, entry_of, hash_file, writing
from deepen.formats.manifest import (
    UNFINISHED,
    Artifact,
    InputEntry,
    Manifest,
    StageJob,
    begin_stage,
    fingerprint,
    finish_stage,
    open_artifact,
    read_unfinished,
)
from deepen.formats.replaced import remove_directory
from deepen.formats.tokens.megatron import IndexedDataset, IndexedDatasetWriter
from deepen.formats.tokens.trained import TrainedMask, merge_trained, trained_path
from deepen.ingest.config import IngestConfig, Source, problems_of
from deepen.model.config import TOKENIZER_FILES, ResolvedBase
from deepen.progress import readable, say

Array = npt.NDArray[Any]

FORMAT = 1
DATASET = "dataset"
"""Prefix of the joined pair."""
_BLOCK_SEQUENCES = 1 << 14


@dataclass(frozen=True)
class TokenizeFiles:
    """What to encode, with what, and where to put it."""

    inputs: tuple[str, ...]
    """Files, folders, globs or addresses, as a recipe's ``ingest.sources[].path``."""
    tokenizer: str
    """Folder or hub id."""
    out: Path
    text: str | None = None
    """Field that holds the text; None: chosen, with a message."""
    append_end: bool = True
    """End every document with the tokenizer's end token (Megatron's ``--append-eod``)."""
    workers: int = 1
    offline: bool = False


def tokenize_files(order: TokenizeFiles) -> Manifest:
    """Write ``NAME.bin/.idx`` for each input and ``dataset.bin/.idx`` for all, in the order of the names.

    Raises ``RecipeError`` naming all inputs that are not there, ``SourceError`` when an input has no text, and
    ``RunError`` when the directory was made from something else.
    """
    from deepen.ingest.stage import ingest
    from deepen.tokenize.stage import tokenize
    from deepen.workflow.inputs.pins import Pins, without_network
    from deepen.workflow.inputs.sources import resolve_sources

    started = time.monotonic()
    with without_network(order.offline):
        pins = Pins(order.out / ".work" / "pins.json", offline=order.offline)
        config = resolve_sources(sources_of(order), pins)
        base = _base_of(order, pins)
        job = _job(order, config, base)
        found = open_artifact(order.out)
        if found is not None and found.fingerprint == job.fingerprint:
            say(f"`{order.out}` is up to date")
            shutil.rmtree(order.out / ".work", ignore_errors=True)
            return found.manifest
        _make_way(order.out, job, found)
        begin_stage(job, stage="tokenize_files", format_number=FORMAT, config=config)
        ingested = _finished(job, "ingest", {}, lambda sub: ingest(config, sub))
        encoded = _finished(job, "tokenize", {"curate": ingested}, lambda sub: tokenize(_keep(), sub, base=base))
    files = _collect(order, encoded)
    counts = _counts(encoded, IndexedDataset.open(order.out / DATASET))
    manifest = finish_stage(
        job, stage="tokenize_files", format_number=FORMAT, config=config, files=files, counts=counts
    )
    shutil.rmtree(order.out / ".work")
    say(_summary(counts, time.monotonic() - started))
    return manifest


def report_files(order: TokenizeFiles) -> dict[str, Any]:
    """How the tokenizer's vocabulary fits the inputs, as ``report.json`` has it; nothing is written to ``order.out``.

    Raises like ``tokenize_files``, and ``DeepenError`` for a vocabulary that cannot be reported on.
    """
    from deepen.ingest.stage import ingest
    from deepen.tokenize.vocabulary.prepare import PreparePart, SourceFiles, prepare
    from deepen.workflow.inputs.pins import Pins, without_network
    from deepen.workflow.inputs.sources import resolve_sources

    with tempfile.TemporaryDirectory(prefix="deepen-report-") as name, without_network(order.offline):
        folder = Path(name)
        pins = Pins(folder / "pins.json", offline=order.offline)
        config = resolve_sources(sources_of(order), pins)
        ingest(config, StageJob(folder / "ingest", "report", workers=order.workers))
        sources = tuple(
            SourceFiles(source.name, source.role, tuple(document_files(folder / "ingest" / "documents", source.name)))
            for source in config.sources
        )
        base, keep = _base_of(order, pins), _keep()
        prepared = prepare(
            PreparePart(folder / "out", base.path, "keep", sources, order.workers, StageJob.seed, keep.template)
        )
    if prepared["report"] is None:
        raise DeepenError("; ".join(prepared["remarks"]), hint="give a tokenizer with a byte-pair vocabulary")
    return dict(prepared["report"])


def _keep() -> Any:
    from deepen.tokenize.config import TokenizeConfig

    return TokenizeConfig(report=False)  # `--report` is a command of its own


def sources_of(order: TokenizeFiles) -> IngestConfig:
    """Every input as a source named after its file; raises ``RecipeError`` with all inputs that cannot be read."""
    names = list(_names(order.inputs))
    sources = [
        Source(name=name, role="domain", path=path, text=order.text)
        for name, path in zip(names, order.inputs, strict=True)
    ]
    found = [
        Problem(f"--input {source.path}", problem.message, problem.remedy, source.path)
        for index, source in enumerate(sources)
        for problem in problems_of(source, index)
    ]
    if not sources:
        found = [Problem("--input", "no input is given", "name files: --input a.jsonl b.parquet")]
    if found:
        raise RecipeError(found)
    return IngestConfig(sources=tuple(sources))


def _names(inputs: Sequence[str]) -> Iterator[str]:
    """A name for each input, made from its file name; a name that is taken gets a number."""
    taken = {DATASET}
    for path in inputs:
        stem = Path(path.rstrip("/*")).name.partition(".")[0]
        name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_") or "input"
        number, chosen = 2, name
        while chosen in taken:
            chosen, number = f"{name}_{number}", number + 1
        taken.add(chosen)
        yield chosen


def _base_of(order: TokenizeFiles, pins: Any) -> ResolvedBase:
    """The tokenizer as the base whose vocabulary is kept, identified by the bytes of its files."""
    folder = Path(order.tokenizer).expanduser()
    if not folder.is_dir():
        folder, _ = pins.snapshot(order.tokenizer, kind="model", patterns=TOKENIZER_FILES)
    files = sorted(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))
    hashes = {path.name: hash_file(path) for path in files}
    return ResolvedBase(
        name=order.tokenizer, path=folder, init=None, fingerprint=fingerprint("tokenizer", 1, {}, hashes)
    )


def _job(order: TokenizeFiles, config: IngestConfig, base: ResolvedBase) -> StageJob:
    from deepen.ingest.stage import FORMAT as INGEST_FORMAT
    from deepen.ingest.stage import source_fingerprint
    from deepen.tokenize.stage import FORMAT as TOKENIZE_FORMAT

    cache = order.out / ".work" / "hashes.json"
    cache.parent.mkdir(parents=True, exist_ok=True)
    raw = {
        f"source:{source.name}": InputEntry(path=source.path, fingerprint=source_fingerprint(source, cache))
        for source in config.sources
    } | {"tokenizer": InputEntry(path=str(base.path), fingerprint=base.fingerprint)}
    identity = {"text": order.text, "append_end": order.append_end, "formats": [INGEST_FORMAT, TOKENIZE_FORMAT]}
    mark = fingerprint("tokenize_files", FORMAT, identity, {name: entry.fingerprint for name, entry in raw.items()})
    return StageJob(out=order.out, fingerprint=mark, raw_inputs=raw, workers=order.workers, identity=identity)


def _make_way(out: Path, job: StageJob, found: Artifact | None) -> None:
    """Refuse a directory with something finished or strange in it; clear one that other work of ours began."""
    begun = read_unfinished(out)
    strange = [path.name for path in out.iterdir() if path.name not in (".work", UNFINISHED)]
    if found is not None or (strange and begun is None):
        raise RunError(
            f"`{out}` holds something else already (made from other inputs, settings or another tokenizer)",
            hint="give another directory to --megatron, or remove this one",
        )
    if begun is not None and begun["fingerprint"] != job.fingerprint:
        say(f"`{out}` holds the beginning of other work, which is removed")
        remove_directory(out)
        out.mkdir()


def _finished(job: StageJob, stage: str, inputs: Mapping[str, Artifact], make: Any) -> Artifact:
    """The stage's artifact in ``.work``, made unless an earlier try finished it."""
    directory = job.out / ".work" / stage
    artifact = open_artifact(directory)
    if artifact is None or artifact.fingerprint != job.fingerprint:
        make(StageJob(directory, job.fingerprint, inputs, job.raw_inputs, job.workers))
        artifact = open_artifact(directory)
    assert artifact is not None, f"stage {stage} returned without writing its manifest"
    return artifact


def _collect(order: TokenizeFiles, encoded: Artifact) -> list[FileEntry]:
    """Write the pairs of all inputs and the joined one; returns the entries of all files."""
    out, names = order.out, sorted(encoded.counts["sources"])
    files = []
    for path in sorted((encoded.path / "tokenizer").rglob("*")):
        if path.is_file():
            target = out / path.relative_to(encoded.path)
            with writing(target) as file:
                file.write(path.read_bytes())
            files.append(file.entry(target.relative_to(out).as_posix()))
    for name in names:
        files += _write_pair(out / name, encoded.path / "shards" / name, order)
    datasets = [IndexedDataset.open(out / name) for name in names]
    with IndexedDatasetWriter(out / DATASET, datasets[0].dtype) as writer:
        for dataset in datasets:
            writer.add_dataset(dataset)
    masked = merge_trained(out / DATASET, [(d.prefix, d.num_tokens) for d in datasets], out)
    return [*files, *writer.entries, *masked]


def _write_pair(target: Path, shard: Path, order: TokenizeFiles) -> list[FileEntry]:
    """One input's pair (and mask), without the end tokens where they are not wanted."""
    dataset, mask = IndexedDataset.open(shard), TrainedMask.open(shard)
    with IndexedDatasetWriter(target, dataset.dtype) as writer:
        if order.append_end:
            writer.add_dataset(dataset)
        else:
            for tokens, lengths in _without_last(dataset):
                writer.add_documents(tokens, lengths)
    entries = list(writer.entries)
    if mask.flags is not None:
        keep = slice(None) if order.append_end else _is_kept(dataset.lengths)
        with writing(trained_path(target)) as file:
            file.write(np.ascontiguousarray(mask.flags[keep]))
        entries.append(entry_of(trained_path(target), order.out))
    return entries


def _without_last(dataset: IndexedDataset) -> Iterator[tuple[Array, Array]]:
    """All sequences, some thousand at a time, without the last token of each."""
    for begin in range(0, dataset.num_sequences, _BLOCK_SEQUENCES):
        lengths = dataset.lengths[begin : begin + _BLOCK_SEQUENCES].astype(np.int64)
        first = int(dataset.offsets[begin]) // dataset.dtype.itemsize
        tokens = dataset.ids(first, first + int(lengths.sum()))
        yield tokens[_is_kept(lengths)], lengths - 1


def _is_kept(lengths: Array) -> Array:
    """bool per token: not the last one of its sequence."""
    kept = np.ones(int(lengths.sum(dtype=np.int64)), dtype=bool)
    kept[np.cumsum(lengths, dtype=np.int64) - 1] = False
    return kept


def _counts(encoded: Artifact, dataset: IndexedDataset) -> dict[str, Any]:
    totals = {"documents": dataset.num_documents, "tokens": dataset.num_tokens, "dtype": dataset.dtype.name}
    return {**encoded.counts, **totals, "bytes": sum(s["bytes"] for s in encoded.counts["sources"].values())}


def _summary(counts: dict[str, Any], seconds: float) -> str:
    return (
        f"{readable(counts['documents'])} documents, {readable(counts['tokens'])} tokens ({counts['dtype']}), "
        f"{counts['bytes'] / 1e6:.1f} MB of text in {seconds:.1f} s: {counts['bytes'] / 1e6 / seconds:.1f} MB/s"
    )
