"""The tokenizer of a run before anything is encoded: kept, extended or learned; its report and its encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from deepen.errors import DeepenError
from deepen.formats.architecture import Architecture, architecture_from_config
from deepen.formats.documents.documents import read_tables, roles_in
from deepen.formats.files.atomic import FileEntry, write_json
from deepen.formats.tokens.extension import write_extension
from deepen.progress import readable
from deepen.tokenize.config import ExtendVocabulary, TrainVocabulary
from deepen.tokenize.conversations.templates import Template
from deepen.tokenize.vocabulary.base_model import BaseModel
from deepen.tokenize.vocabulary.extend import changes, extended, extension_of, prove_grown, write_grown
from deepen.tokenize.vocabulary.given_words import grow_by_words, read_words
from deepen.tokenize.vocabulary.growth import Growth, grow
from deepen.tokenize.vocabulary.report import Report, Sample, report_of
from deepen.tokenize.vocabulary.samples import num_text_bytes, sample_source

REPORT = "report.json"
_SAMPLES_PER_SOURCE = 16
_SAMPLE_CHARACTERS = 20_000


@dataclass(frozen=True)
class SourceFiles:
    """The documents of one source."""

    name: str
    role: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class PreparePart:
    """The tokenizer to make and the documents that it is checked on or learned from."""

    out: Path
    base: Path | None
    vocabulary: Literal["keep"] | TrainVocabulary | ExtendVocabulary
    sources: tuple[SourceFiles, ...]
    workers: int
    seed: int
    template: str
    """``tokenize.template``."""
    report: bool = True
    """``tokenize.report``."""

    @property
    def documents(self) -> tuple[Path, ...]:
        """The files of all sources."""
        return tuple(path for source in self.sources for path in source.files)


def prepare(part: PreparePart) -> dict[str, Any]:
    """Write ``tokenizer/`` (and what belongs to it) and find the encoder; returns what the encoding needs to know.

    For a pretrained base also ``report.json``, and for an extended vocabulary ``extension.json`` and the new rows.
    """
    from deepen.tokenize.encoder import choose_boundary, choose_encoder
    from deepen.tokenize.vocabulary.tokenizer import read_vocabulary

    # A few of each source: what is proven on them, parts check again.
    samples = [text for source in part.sources for text in _first_texts(source)]
    learned = isinstance(part.vocabulary, TrainVocabulary)
    made = _learn(part) if learned else _keep_or_extend(part, samples)
    folder = part.out / "tokenizer"
    vocabulary = read_vocabulary(folder)
    remarks = made["remarks"]
    if isinstance(part.vocabulary, TrainVocabulary) and vocabulary.size < part.vocabulary.train:
        remarks.append(f"the corpus yields a vocabulary of {vocabulary.size} only, {part.vocabulary.train} was asked")
    template, entries, remark = _prepare_template(part, folder)
    # A file that was written again counts once, as it is now.
    files = {file.path: file for file in (*made["files"], *entries)}
    remarks.append(remark)
    # New tokens may be in none of the samples: their own texts are tried as well.
    encoder, remark = choose_encoder(folder, vocabulary.control, [*samples, *made["new_texts"]])
    remarks.append(f"{remark}: encoding with the slower tokenizers library" if remark else "")
    boundary = choose_boundary(folder, vocabulary.control, samples, encoder)
    return {
        "files": [file.model_dump() for file in files.values()],
        "vocabulary": asdict(vocabulary),
        "encoder": encoder,
        "boundary": boundary,
        "template": None if template is None else asdict(template),
        "report": made["report"],
        "extension": made["extension"],
        "remarks": [remark for remark in remarks if remark],
    }


def _learn(part: PreparePart) -> dict[str, Any]:
    """A vocabulary of the corpus's own."""
    from deepen.tokenize.vocabulary.tokenizer import sampled, train_tokenizer

    assert isinstance(part.vocabulary, TrainVocabulary), "called for learned vocabularies"
    texts = sampled(_texts(part.documents), num_text_bytes(part.documents))
    files = train_tokenizer(texts, part.vocabulary.train, part.out, part.workers)
    return {"files": files, "remarks": [], "report": None, "extension": None, "new_texts": []}


def _keep_or_extend(part: PreparePart, samples: Sequence[str]) -> dict[str, Any]:
    """The base's vocabulary, looked at, and extended if that is asked for."""
    from deepen.tokenize.vocabulary.tokenizer import keep_tokenizer

    assert part.base is not None, "only a base with a folder has a tokenizer to keep"
    files, remark = keep_tokenizer(part.base, part.out, samples)
    made: dict[str, Any] = {
        "files": files, "remarks": [remark], "report": None, "extension": None, "new_texts": [],
    }  # fmt: skip
    if part.vocabulary == "keep" and not part.report:
        return made
    looked_at = [sample for source in part.sources for sample in sample_source(source.name, source.role, source.files)]
    domain = [source for source in part.sources if source.role == "domain"]
    num_bytes = sum(num_text_bytes(source.files) for source in domain)
    try:
        report = report_of(looked_at, part.out / "tokenizer", shape=_shape(part.base), domain_bytes=num_bytes)
    except DeepenError as error:  # a base that cannot be extended can still be kept: then the report is left out
        if part.vocabulary != "keep":
            raise
        made["remarks"].append(f"no vocabulary report: {error.message.removeprefix('tokenize.vocabulary: ')}")
        return made
    extension = None
    if isinstance(part.vocabulary, ExtendVocabulary):
        extension = _extend(part, part.vocabulary, report, looked_at, made)
    made["report"] = report.to_json() | {"extension": extension}
    made["extension"] = extension
    made["files"] = [*made["files"], write_json(part.out / REPORT, made["report"])]
    return made


def _extend(
    part: PreparePart, asked: ExtendVocabulary, report: Report, looked_at: Sequence[Sample], made: dict[str, Any]
) -> dict[str, Any] | None:
    """Grow the vocabulary in ``tokenizer/``; returns its counts, or None when there is nothing to add."""
    from deepen.model.new_rows import rows_line, write_new_rows

    assert part.base is not None, "only a base with a folder is extended"
    folder = part.out / "tokenizer"
    base = BaseModel.read(folder / "tokenizer.json")
    words = [] if asked.words is None else read_words(Path(asked.words).expanduser())
    by_words, refused = grow_by_words(base, words)
    with_words = extended(base, by_words)  # words first: what is learned then continues from them
    number = report.extend_by if asked.extend == "auto" else asked.extend
    growth = (
        grow(with_words, with_words.count_words(_learned_from(part, report, asked)), number) if number else Growth()
    )
    grown = extended(with_words, growth)
    tokens = [*by_words.tokens, *growth.tokens]
    if refused:
        counted = ", ".join(f"{count} {reason}" for reason, count in refused.items())
        made["remarks"].append(f"of {len(words)} given words {sum(refused.values())} are not added: {counted}")
    if len(growth.tokens) < number:
        made["remarks"].append(f"the domain text yields {len(growth.tokens)} new tokens only, {number} were asked")
    if not tokens:
        if asked.repair_near_zero_rows:
            made["remarks"].append(
                "no token is new, so the model stays as it is: near-zero rows are not repaired either"
            )
        return None
    prove_grown(base, grown, tokens)
    groups = _changed(base, grown, looked_at)
    init = {"init": asked.init, "repair_near_zero_rows": asked.repair_near_zero_rows}
    extension = extension_of(base, grown, tokens, init)
    entries = [*write_grown(folder, grown), write_extension(part.out, extension)]
    rows_entry, rows = write_new_rows(
        part.base, part.out, extension, init=asked.init, repair=asked.repair_near_zero_rows, seed=part.seed
    )
    made["remarks"].append(rows_line(rows))
    replaced = {entry.path for entry in entries}
    made["files"] = [*(file for file in made["files"] if file.path not in replaced), *entries, rows_entry]
    made["new_texts"] = [" ".join(token.text for token in extension.tokens if token.text)]
    return {
        "base_vocabulary_size": base.size,
        "new_tokens": len(tokens),
        "new_merges": len(by_words.merges) + len(growth.merges),
        "steps_only": sum(uses == 0 for uses in growth.uses),
        "words": {"given": len(words), "new_tokens": len(by_words.tokens), "refused": refused},
        "sources": groups,
        "rows": rows,
    }


def _learned_from(part: PreparePart, report: Report, asked: ExtendVocabulary) -> Iterator[str]:
    """Domain text to learn from: of the sources that fit poorly when the report decides, else of all."""
    from deepen.tokenize.vocabulary.tokenizer import sampled

    poor = set(report.poor_sources) if asked.extend == "auto" else None
    chosen = [s for s in part.sources if s.role == "domain" and (poor is None or s.name in poor)]
    files = [path for source in chosen for path in source.files]
    return sampled(_texts(files), num_text_bytes(files))


def _changed(base: BaseModel, grown: BaseModel, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Per source, what the larger vocabulary changes in its sample; proves that nothing else changes."""
    found: dict[str, dict[str, Any]] = {}
    for sample in samples:
        counts = changes(base, grown, sample.texts).counts()
        before = found.get(sample.source, {"role": sample.role} | dict.fromkeys(counts, 0))
        found[sample.source] = before | {key: before[key] + value for key, value in counts.items()}
    return found


def changed_general(sources: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Documents of general (replay) samples, and how many of them hold a new token: only those are split anew."""
    general = [counts for counts in sources.values() if counts["role"] != "domain"]
    return {key: sum(counts[key] for counts in general) for key in ("documents", "changed")}


def extension_line(extension: dict[str, Any]) -> str:
    """One line about a grown vocabulary, for the summary."""
    parts = [
        f"{name} {1 - counts['tokens_after'] / max(1, counts['tokens_before']):.1%} fewer tokens"
        for name, counts in extension["sources"].items()
    ]
    general = changed_general(extension["sources"])
    kept = f"{general['changed']} of {general['documents']} sampled general documents hold a new token"
    return f"{readable(extension['new_tokens'])} new tokens: {', '.join(parts)}; {kept}, the others are as before"


def _shape(base: Path) -> Architecture | None:
    """The base's shape, for costs; None for a family whose config is not known here."""
    path = base / "config.json"
    try:
        return architecture_from_config(json.loads(path.read_text())) if path.is_file() else None
    except KeyError:
        return None


def _prepare_template(part: PreparePart, folder: Path) -> tuple[Template | None, list[FileEntry], str]:
    """The chat template, where documents have turns and one is wanted; what was written; and a remark (or "")."""
    from deepen.tokenize.conversations.templates import choose_template

    # The two halves of a prompt need no marks between them.
    turns = {role for path in part.documents for role in roles_in(path)} - {"prompt", "target"}
    return choose_template(part.template, folder) if turns and part.template != "none" else (None, [], "")


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        for table in read_tables(path, ["text"]):
            yield from table["text"].to_pylist()


def _first_texts(source: SourceFiles) -> list[str]:
    """The beginnings of the first documents of a source."""
    return [text[:_SAMPLE_CHARACTERS] for text in islice(_texts(source.files[:1]), _SAMPLES_PER_SOURCE)]
