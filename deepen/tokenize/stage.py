"""The tokenize stage: the run's tokenizer, and every training document as token ids in Megatron shards."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen.engine.map_parts import clear_ledger, map_parts
from deepen.errors import DeepenError, SourceError
from deepen.formats.atomic import FileEntry
from deepen.formats.documents import document_files, num_documents_in, read_tables, roles_in
from deepen.formats.manifest import Manifest, StageJob, begin_stage, finish_stage
from deepen.formats.workers import as_workers
from deepen.model.config import ResolvedBase
from deepen.progress import readable, say
from deepen.tokenize.config import TokenizeConfig

if TYPE_CHECKING:
    from deepen.tokenize.templates import Template
    from deepen.tokenize.vocabulary import Vocabulary

FORMAT = 2
_TRAINED_ROLES = ("domain", "replay")
_SAMPLES_PER_SOURCE = 16
_SAMPLE_CHARACTERS = 20_000


def tokenize(config: TokenizeConfig, job: StageJob, *, base: ResolvedBase) -> Manifest:
    """Encode the domain and replay documents of ``job.inputs["curate"]`` with the base's or a new vocabulary.

    Writes ``tokenizer/``, ``shards/SOURCE.bin``, ``.idx`` and, where something is masked, ``.trained``, and
    ``documents/SOURCE.npy``. Raises ``DeepenError`` when the vocabulary does not fit the base or cannot end a document,
    ``SourceError`` when there is nothing to train on.
    """
    from deepen.tokenize.vocabulary import Vocabulary

    begin_stage(job, stage="tokenize", format_number=FORMAT, config=config)
    _check_vocabulary(config, base)
    curate = job.inputs["curate"]
    roles = {
        name: source["role"] for name, source in curate.counts["sources"].items() if source["role"] in _TRAINED_ROLES
    }
    files = {name: document_files(curate.path / "documents", name) for name in roles}
    if not any(files.values()):
        raise SourceError("no domain or replay source has a document", hint="look at what `curate` dropped, and why")

    prepared = _prepare(config, job, base, files)
    vocabulary = Vocabulary(**prepared["vocabulary"])
    encoder, encoded = _encode(job, prepared, vocabulary, files)
    merged = _merge(job, vocabulary, files)

    sources = {name: _totals(role, encoded[name]) for name, role in roles.items()}
    counts = {
        "sources": sources,
        "vocabulary_size": vocabulary.size,
        "end_of_document_id": vocabulary.end_of_document_id,
        "begin_of_document_id": vocabulary.begin_of_document_id,
        "encoder": encoder,
    }
    say(_summary(counts))
    clear_ledger(_ledger(job))
    shutil.rmtree(_parts_directory(job), ignore_errors=True)
    entries = [FileEntry(**file) for file in (*prepared["files"], *merged)]
    return finish_stage(job, stage="tokenize", format_number=FORMAT, config=config, files=entries, counts=counts)


def _check_vocabulary(config: TokenizeConfig, base: ResolvedBase) -> None:
    if base.init is not None and config.vocabulary == "keep":
        raise DeepenError(
            "tokenize.vocabulary: a base with `init: random` has no tokenizer to keep",
            hint="set tokenize.vocabulary to, for example, {train: 4096}",
        )
    if base.init is None and config.vocabulary != "keep":
        raise DeepenError(
            f"tokenize.vocabulary: a new vocabulary does not fit `{base.name}`, which was trained with its own",
            hint="set tokenize.vocabulary: keep",
        )


def _ledger(job: StageJob) -> Path:
    return job.out / ".ledger"


def _parts_directory(job: StageJob) -> Path:
    return job.out / "shards" / ".parts"


@dataclass(frozen=True)
class PreparePart:
    """The tokenizer to make and the documents that it is checked on or learned from."""

    out: Path
    base: Path | None
    vocabulary_size: int | None
    """Size of a vocabulary to learn; None keeps the base's."""
    documents: tuple[Path, ...]
    samples: tuple[Path, ...]
    """The files whose first documents every encoder must agree on."""
    workers: int
    template: str
    """``tokenize.template``."""


def prepare(part: PreparePart) -> dict[str, Any]:
    """Write ``tokenizer/`` and find the encoder for it; returns what the encoding needs to know."""
    from deepen.tokenize.encoder import choose_boundary, choose_encoder
    from deepen.tokenize.vocabulary import keep_tokenizer, read_vocabulary, sampled, train_tokenizer

    remarks = []
    samples = [text for path in part.samples for text in _first_texts(path)]
    if part.vocabulary_size is None:
        assert part.base is not None, "only a base with a folder has a tokenizer to keep"
        files, remark = keep_tokenizer(part.base, part.out, samples)
        remarks.append(remark)
    else:
        total_bytes = sum(table["text"].nbytes for path in part.documents for table in read_tables(path, ["text"]))
        texts = sampled(_texts(part.documents), total_bytes)
        files = train_tokenizer(texts, part.vocabulary_size, part.out, part.workers)
    folder = part.out / "tokenizer"
    vocabulary = read_vocabulary(folder)
    if part.vocabulary_size is not None and vocabulary.size < part.vocabulary_size:
        remarks.append(f"the corpus yields a vocabulary of {vocabulary.size} only, {part.vocabulary_size} was asked")
    template, entries, remark = _prepare_template(part, folder)
    files = [*(file for file in files if file.path not in {entry.path for entry in entries}), *entries]
    remarks.append(remark)
    encoder, remark = choose_encoder(folder, vocabulary.control, samples)
    remarks.append(f"{remark}: encoding with the slower tokenizers library" if remark else "")
    boundary = choose_boundary(folder, vocabulary.control, samples, encoder)
    return {
        "files": [file.model_dump() for file in files],
        "vocabulary": asdict(vocabulary),
        "encoder": encoder,
        "boundary": boundary,
        "template": None if template is None else asdict(template),
        "remarks": [remark for remark in remarks if remark],
    }


def _prepare_template(part: PreparePart, folder: Path) -> tuple[Template | None, list[FileEntry], str]:
    """The chat template, where documents have turns and one is wanted; what was written; and a remark (or "")."""
    from deepen.tokenize.templates import choose_template

    turns = {role for path in part.documents for role in roles_in(path)} - {"prompt", "target"}
    return choose_template(part.template, folder) if turns and part.template != "none" else (None, [], "")


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        for table in read_tables(path, ["text"]):
            yield from table["text"].to_pylist()


def _first_texts(path: Path) -> list[str]:
    """The beginnings of the first documents of a file."""
    return [text[:_SAMPLE_CHARACTERS] for text in islice(_texts([path]), _SAMPLES_PER_SOURCE)]


def _prepare(config: TokenizeConfig, job: StageJob, base: ResolvedBase, files: dict[str, list[Path]]) -> dict[str, Any]:
    size = None if config.vocabulary == "keep" else config.vocabulary.train
    documents = tuple(path for paths in files.values() for path in paths)
    samples = tuple(paths[0] for paths in files.values() if paths)
    part = PreparePart(job.out, base.path, size, documents, samples, as_workers(job.workers).processes, config.template)
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
    from deepen.tokenize.parts import EncodePart, encode_part
    from deepen.tokenize.templates import Template

    found = prepared["template"]
    template = None if found is None else Template(found["source"], tuple(map(tuple, found["tokens"])))
    prefixes, folder = _parts_directory(job), job.out / "tokenizer"
    named = [(name, path) for name, paths in files.items() for path in paths]
    sizes = [num_documents_in(path) for _, path in named]
    for encoder in dict.fromkeys((prepared["encoder"], "tokenizers")):
        boundary = prepared["boundary"]
        parts = [
            EncodePart(path, prefixes / path.stem, folder, vocabulary, encoder, boundary, template) for _, path in named
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
    from deepen.tokenize.parts import MergePart, merge_parts

    prefixes = {name: tuple(_parts_directory(job) / path.stem for path in paths) for name, paths in files.items()}
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
        because = result["refused_because"] | because
    sums = {key: sum(result[key] for result in results) for key in keys}
    return {"role": role, **sums, "refused": dict(sorted(refused.items())), "refused_because": because}


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
