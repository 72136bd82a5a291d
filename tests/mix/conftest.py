from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
from deepen.formats.megatron import IndexedDatasetWriter

MakeJob = Callable[..., StageJob]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A mix job over shards made from lengths: ``make_job("out", papers=("domain", [5, 9]))``; ids count upwards."""

    def make(out: str, *, seed: int = 17, workers: int = 1, **sources: tuple[str, list[int]]) -> StageJob:
        counts: dict[str, Mapping[str, object]] = {}
        for name, (role, lengths) in sources.items():
            with IndexedDatasetWriter(tmp_path / "tokenize" / "shards" / name, "<i4") as writer:
                writer.add_documents(np.arange(sum(lengths)), np.array(lengths))
            counts[name] = {"role": role, "documents": len(lengths), "tokens": sum(lengths)}
        manifest = Manifest(
            stage="tokenize", format=1, fingerprint="f", config={}, inputs={}, counts={"sources": counts},
            code=CodeVersion(version="0"), started="", finished="",
        )  # fmt: skip
        tokenize = Artifact(tmp_path / "tokenize", manifest)
        return StageJob(tmp_path / out, "fingerprint", {"tokenize": tokenize}, workers=workers, seed=seed)

    return make
