"""The tokenize stage: the run's tokenizer, and every training document as token ids in Megatron shards."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.engine.map_parts import clear_ledger, map_parts
from deepen.errors import DeepenError, SourceError
from deepen.formats.documents.documents import document_files
from deepen.formats.files.atomic import FileEntry
from deepen.formats.manifest import Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.tokens.new_token_counts import count_new_tokens, write_new_token_counts
from deepen.formats.unchanged import check_inputs
from deepen.formats.workers import as_workers
from deepen.model.config import ResolvedBase
from deepen.progress import readable, say
from deepen.tokenize.carry_over import MADE_FROM, carry_over, documents_hash
from deepen.tokenize.config import TokenizeConfig, TrainVocabulary
from deepen.tokenize.vocabulary.report_text import rendered

if TYPE_CHECKING:
    from deepen.tokenize.vocabulary.tokenizer import Vocabulary

FORMAT = 2
_TRAINED_ROLES = ("domain", "replay")


def tokenize(config: TokenizeConfig, job: StageJob, *, base: ResolvedBase) -> Manifest:
    """Encode the domain and replay documents of ``job.inputs["curate"]`` with the base's or a new vocabulary.

    Writes ``tokenizer/``, ``shards/SOURCE.bin``, ``.idx`` and, where something is masked, ``.trained``, and
    ``documents/SOURCE.npy``. Raises ``DeepenError`` when the vocabulary does not fit the base or cannot end a document,
    ``SourceError`` when there is nothing to train on.
    """
    from deepen.tokenize.vocabulary.tokenizer import Vocabulary

    check_inputs(job, {"curate": ["documents/"]})
    begin_stage(job, stage="tokenize", format_number=FORMAT, config=config)
    _check_vocabulary(config, base)
    curate = job.inputs["curate"]
    roles = {
        name: source["role"] for name, source in curate.counts["sources"].items() if source["role"] in _TRAINED_ROLES
    }
    files = {name: document_files(curate.path / "documents", name) for name in roles}
    if not any(files.values()):
        raise SourceError("no domain or replay source has a document", hint="look at what `curate` dropped, and why")

    prepared = _prepare(config, job, base, files, roles)
    vocabulary = Vocabulary(**prepared["vocabulary"])
    made_from = {name: documents_hash(curate, paths) for name, paths in files.items()}
    carried = carry_over(job, prepared, made_from, FORMAT)
    fresh = {name: paths for name, paths in files.items() if name not in carried}
    encoder, encoded = _encode(job, prepared, vocabulary, fresh)
    if encoder != prepared["encoder"]:  # a source differed from the reference: what was taken over was never compared
        carried, fresh = {}, files
        encoder, encoded = _encode(job, {**prepared, "encoder": encoder}, vocabulary, files)
    merged = _merge(job, vocabulary, fresh)

    totals = {name: {**_totals(roles[name], encoded[name]), MADE_FROM: made_from[name]} for name in fresh}
    before = {} if job.previous is None else job.previous.counts["sources"]
    sources = {
        name: {**before[name], "role": role} if name in carried else totals[name] for name, role in roles.items()
    }
    _check_refused(sources)
    counts = {
        "sources": sources,
        "vocabulary_size": vocabulary.size,
        "end_of_document_id": vocabulary.end_of_document_id,
        "begin_of_document_id": vocabulary.begin_of_document_id,
        "encoder": encoder,
        **_extension_counts(prepared["extension"]),
    }
    if prepared["report"] is not None:
        say(f"tokenize: {rendered(prepared['report'])}")
    say(_summary(counts))
    clear_ledger(_ledger(job))
    shutil.rmtree(_parts_directory(job), ignore_errors=True)
    entries = [FileEntry(**file) for file in (*prepared["files"], *merged)]
    entries += [entry for shard in carried.values() for entry in shard]
    entries += _count_new_tokens(job, counts)
    return finish_stage(job, stage="tokenize", format_number=FORMAT, config=config, files=entries, counts=counts)


def _check_refused(sources: dict[str, dict[str, Any]]) -> None:
    """Raise ``SourceError`` for sources of which the chat template refused every document."""
    lines = [
        f"source `{name}`: no document can be written in the chat template ({reason}: {because})"
        for name, counts in sources.items()
        for reason, because in counts["refused_because"].items()
        if counts["documents"] == 0
    ]
    if lines:
        hint = "give another one with tokenize.template: FILE, or `none` for turns without marks"
        raise SourceError("\n".join(lines), hint=hint)


def _check_vocabulary(config: TokenizeConfig, base: ResolvedBase) -> None:
    learns = isinstance(config.vocabulary, TrainVocabulary)
    if base.init is not None and not learns:
        raise DeepenError(
            "tokenize.vocabulary: a base with `init: random` has no tokenizer to keep or to extend",
            hint="set tokenize.vocabulary to, for example, {train: 4096}",
        )
    if base.init is None and learns:
        raise DeepenError(
            f"tokenize.vocabulary: a new vocabulary does not fit `{base.name}`, which was trained with its own",
            hint="set tokenize.vocabulary: keep, or {extend: auto}",
        )


def _ledger(job: StageJob) -> Path:
    return job.out / ".ledger"


def _parts_directory(job: StageJob) -> Path:
    return job.out / "shards" / ".parts"


def _prepare(
    config: TokenizeConfig, job: StageJob, base: ResolvedBase, files: dict[str, list[Path]], roles: dict[str, str]
) -> dict[str, Any]:
    from deepen.tokenize.vocabulary.prepare import PreparePart, SourceFiles, prepare

    sources = tuple(SourceFiles(name, roles[name], tuple(paths)) for name, paths in files.items() if paths)
    part = PreparePart(
        out=job.out,
        base=base.path,
        vocabulary=config.vocabulary,
        sources=sources,
        workers=as_workers(job.workers).processes,
        seed=job.seed,
        template=config.template,
        report=config.report,
    )
    # One part, for the sake of the ledger: a run that goes on must not learn or extend the vocabulary again.
    (prepared,) = map_parts(
        prepare, [part], workers=1, ledger=_ledger(job) / "tokenizer", what="tokenizer", unit="tokenizers", sizes=[1]
    )
    for remark in prepared["remarks"]:
        say(f"tokenize: {remark}")
    return prepared


def _encode(
    job: StageJob, prepared: dict[str, Any], vocabulary: Vocabulary, files: dict[str, list[Path]]
) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Encode all parts; returns the encoder that was used and the parts' counts by source.

    If any sampled document differs from the reference, everything is encoded again by the reference.
    """
    from deepen.tokenize.conversations.templates import Template
    from deepen.tokenize.parts import EncodePart, encode_part, slices_of

    found = prepared["template"]
    template = None if found is None else Template(found["source"], tuple(map(tuple, found["tokens"])))
    prefixes, folder = _parts_directory(job), job.out / "tokenizer"
    named = [(name, each) for name, paths in files.items() for path in paths for each in slices_of(path)]
    sizes = [each.num_documents for _, each in named]
    for encoder in dict.fromkeys((prepared["encoder"], "tokenizers")):  # once, if the reference is what was chosen
        boundary = prepared["boundary"]
        parts = [
            EncodePart(each.path, prefixes / each.name, folder, vocabulary, encoder, boundary, template, each.groups)
            for _, each in named
        ]
        results = map_parts(
            encode_part, parts, workers=job.workers, ledger=_ledger(job) / encoder, what="tokenizing", unit="documents",
            sizes=sizes,
        )  # fmt: skip
        differs = next((result["differs"] for result in results if result["differs"]), None)
        if differs is None:
            return encoder, {
                name: [r for (of, _), r in zip(named, results, strict=True) if of == name] for name in files
            }
        say(f"tokenize: {encoder} gives other ids than tokenizers for document {differs}: encoding all again")
    raise AssertionError("tokenizers differs from itself")


def _merge(job: StageJob, vocabulary: Vocabulary, files: dict[str, list[Path]]) -> list[dict[str, Any]]:
    from deepen.tokenize.parts import MergePart, merge_parts, slices_of

    parts_directory = _parts_directory(job)
    prefixes = {
        name: tuple(parts_directory / each.name for path in paths for each in slices_of(path))
        for name, paths in files.items()
    }
    parts = [MergePart(job.out, name, those, vocabulary) for name, those in prefixes.items()]
    results = map_parts(
        merge_parts, parts, workers=1, ledger=_ledger(job) / "merge", what="joining shards", unit="files",
        sizes=[len(part.prefixes) for part in parts],
    )  # fmt: skip
    return [file for result in results for file in result["files"]]


def _totals(role: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = ("documents", "tokens", "targets", "bytes", "target_bytes", "words", "checked", "conversations", "trimmed")
    refused: Counter[str] = Counter()
    because: dict[str, str] = {}
    for result in results:
        refused.update(result["refused"])
        because = result["refused_because"] | because  # the first part's example stays
    sums = {key: sum(result[key] for result in results) for key in keys}
    return {"role": role, **sums, "refused": dict(sorted(refused.items())), "refused_because": because}


def _extension_counts(extension: dict[str, Any] | None) -> dict[str, Any]:
    """What the manifest says of a grown vocabulary; nothing of one that is the base's own."""
    from deepen.tokenize.vocabulary.prepare import changed_general, extension_line

    if extension is None:
        return {}
    say(f"tokenize: {extension_line(extension)}")
    return {
        "base_vocabulary_size": extension["base_vocabulary_size"],
        "new_tokens": extension["new_tokens"],
        "changed_general": changed_general(extension["sources"]),
        "extension": extension,
    }


def _count_new_tokens(job: StageJob, counts: dict[str, Any]) -> list[FileEntry]:
    """How often each new token stands in the shards, for a grown vocabulary."""
    if "new_tokens" not in counts:
        return []
    first, size, shards = counts["base_vocabulary_size"], counts["vocabulary_size"], job.out / "shards"
    found = {name: count_new_tokens(shards / name, first, size) for name in counts["sources"]}
    return [write_new_token_counts(job.out, found)]


def _summary(counts: dict[str, Any]) -> str:
    lines = [f"tokenize: vocabulary of {counts['vocabulary_size']}, encoded by {counts['encoder']}"]
    for name, source in counts["sources"].items():
        tokens = max(1, source["tokens"])
        lines.append(
            f"  {name} ({source['role']}): {readable(source['tokens'])} tokens in {readable(source['documents'])} "
            f"documents, {source['bytes'] / tokens:.2f} bytes per token, "
            f"{source['tokens'] / max(1, source['words']):.2f} tokens per word"
        )
        if source["targets"] < source["tokens"]:
            lines.append(
                f"    {source['conversations']} with turns; {source['targets'] / tokens:.0%} of tokens trained"
            )
        lines += [
            f"    {number} refused: {reason} ({source['refused_because'][reason]})"
            for reason, number in source["refused"].items()
        ]
    return "\n".join(lines)
