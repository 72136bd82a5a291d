from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.documents.documents import Document, document_id, write_documents
from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
from deepen.formats.tokens.megatron import IndexedDatasetWriter

MakeJob = Callable[..., StageJob]


def artifact(path: Path, counts: dict[str, object]) -> Artifact:
    manifest = Manifest(
        stage=path.name, format=1, fingerprint=path.name, config={}, inputs={}, counts=counts,
        code=CodeVersion(version="0"), started="", finished="",
    )  # fmt: skip
    return Artifact(path, manifest)


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A mix job over shards made from lengths: ``make_job("out", papers=("domain", [5, 9]))``; ids count upwards.

    A third item of a source names the category of each of its documents.
    """

    def make(out: str, *, seed: int = 17, workers: int = 1, **sources: tuple[object, ...]) -> StageJob:
        counts: dict[str, Mapping[str, object]] = {}
        tokenize, curate = tmp_path / "tokenize", tmp_path / "curate"
        (tokenize / "documents").mkdir(parents=True, exist_ok=True)
        for name, (role, lengths, *categories) in sources.items():
            with IndexedDatasetWriter(tokenize / "shards" / name, "<i4") as writer:
                writer.add_documents(np.arange(sum(lengths)), np.array(lengths, dtype=np.int64))
            ids = [document_id(name, str(number)) for number in range(len(lengths))]
            np.save(tokenize / "documents" / f"{name}.npy", pack_ids(ids))
            named = zip(ids, categories[0] if categories else [None] * len(ids), strict=True)
            documents = [Document(of, "text", name, category=category) for of, category in named]
            write_documents(curate / "documents" / f"{name}-00000.parquet", documents, curate)
            counts[name] = {"role": role, "documents": len(lengths), "tokens": sum(lengths)}
        inputs = {"tokenize": artifact(tokenize, {"sources": counts}), "curate": artifact(curate, {})}
        return StageJob(tmp_path / out, "fingerprint", inputs, workers=workers, seed=seed)

    return make
