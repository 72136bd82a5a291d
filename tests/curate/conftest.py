"""Small corpora as finished ingest stages, and runs of the curate stage on them."""

import random
from pathlib import Path

import pytest

from deepen.curate.config import CurateConfig
from deepen.curate.stage import curate
from deepen.formats.documents.documents import (
    Document,
    content_hash,
    document_files,
    document_id,
    read_documents,
    read_tables,
    write_documents,
)
from deepen.formats.manifest import Artifact, StageJob, finish_stage

WORDS = [f"{first}{second}{third}" for first in "bdfgk" for second in "aeiou" for third in ("ln", "rt", "sk", "mp")]


def prose(seed: int, num_words: int = 80) -> str:
    """Made-up prose that shares no five words with that of another seed."""
    generator = random.Random(seed)
    return " ".join(f"{generator.choice(WORDS)}{generator.randrange(1000)}" for _ in range(num_words))


@pytest.fixture(name="prose")
def prose_fixture():
    return prose


@pytest.fixture
def ingested(tmp_path):
    """``ingested({"name": (role, texts) or (role, [texts of part 0, texts of part 1])})``: a finished ingest stage."""

    def ingested(sources, name="ingest"):
        out, files, counts = tmp_path / name, [], {}
        for source, (role, texts) in sources.items():
            parts = texts if texts and isinstance(texts[0], list) else [texts]
            for number, part in enumerate(parts):
                documents = [document(source, f"{number}:{row}", text) for row, text in enumerate(part)]
                files.append(write_documents(out / f"documents/{source}-{number:05d}.parquet", documents, out)[0])
            counts[source] = {"role": role, "licence": "CC0", "documents": sum(map(len, parts))}
        job = StageJob(out=out, fingerprint=f"f-{name}")
        config = CurateConfig()
        manifest = finish_stage(
            job, stage="ingest", format_number=1, config=config, files=files, counts={"sources": counts}
        )
        return Artifact(out, manifest)

    return ingested


def document(source: str, location: str, text: str) -> Document:
    return Document(document_id(source, location), text, source, content_hash=content_hash(text))


@pytest.fixture
def run(tmp_path):
    """``run(artifact, steps=[...], held_out={...})``: curate and return the counts by source."""

    def run(artifact, out="out", workers=1, fingerprint="f", **settings):
        config = CurateConfig.model_validate(settings)
        job = StageJob(tmp_path / out, fingerprint, {"ingest": artifact}, workers=workers)
        return curate(config, job).counts["sources"]

    return run


@pytest.fixture
def texts(tmp_path):
    """``texts("documents" or "held_out", source)`` of a finished run."""

    def texts(kind, source, out="out"):
        folder = tmp_path / out / kind
        files = document_files(folder, source) if kind == "documents" else [folder / f"{source}.parquet"]
        return [document.text for file in files for document in read_documents(file)]

    return texts


@pytest.fixture
def drops(tmp_path):
    """All rows of ``dropped/`` of a finished run."""

    def drops(source=None, out="out"):
        files = document_files(tmp_path / out / "dropped", source)
        return [row for file in files for table in read_tables(file) for row in table.to_pylist()]

    return drops


@pytest.fixture
def same_bytes(tmp_path):
    """Whether two artifacts hold the same files, their manifests aside."""

    def contents(directory: Path):
        files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
        return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}

    return lambda first, second: contents(tmp_path / first) == contents(tmp_path / second)
