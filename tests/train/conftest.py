"""A tiny corpus in deepen's own formats, and a tiny network to train on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.documents.documents import document_id
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
from deepen.formats.tokens.megatron import IndexedDatasetWriter
from deepen.formats.tokens.order import Segment, Segments, row_ids, write_order, write_segments
from deepen.formats.tokens.packs import write_packs
from deepen.formats.training.scores import Score
from deepen.model.config import RandomInit, ResolvedBase
from deepen.parallel.config import Compute
from deepen.settings import Amount, Interval
from deepen.train.beside.hooks import Hooks
from deepen.train.config import TrainConfig
from deepen.train.stage import train

VOCABULARY = 97
LENGTH = 16
ROWS = 4


def write_source(root: Path, name: str, lengths: list[int], seed: int) -> dict[str, Any]:
    """Shard, ids and spliced rows of random documents that end in token 0; returns what the manifests count."""
    random = np.random.default_rng(seed)
    documents = [np.append(random.integers(1, VOCABULARY, length - 1), 0).astype(np.uint16) for length in lengths]
    (root / "tokenize/shards").mkdir(parents=True, exist_ok=True)
    (root / "tokenize/documents").mkdir(parents=True, exist_ok=True)
    with IndexedDatasetWriter(root / "tokenize/shards" / name, np.uint16) as writer:
        writer.add_documents(np.concatenate(documents), np.array(lengths))
    ids = pack_ids([document_id(name, str(number)) for number in range(len(lengths))])
    np.save(root / "tokenize/documents" / f"{name}.npy", ids)
    rows: list[list[tuple[int, int, int]]] = [[]]
    for sequence, length in enumerate(lengths):
        start = 0
        while start < length:
            room = LENGTH - sum(piece[2] for piece in rows[-1])
            if room == 0:
                rows.append([])
                continue
            rows[-1].append((sequence, start, min(room, length - start)))
            start += rows[-1][-1][2]
    bounds = np.cumsum([0, *map(len, rows)])
    write_packs(root / "mix", name, bounds, np.array([piece for row in rows for piece in row], dtype=np.int32))
    return {"role": "domain", "tokens": sum(lengths), "bytes": 3 * sum(lengths), "rows": len(rows)}


def artifact(path: Path, counts: dict[str, Any]) -> Artifact:
    manifest = Manifest(
        stage=path.name, format=1, fingerprint=path.name, config={}, inputs={}, counts=counts,
        code=CodeVersion(version="0"), started="", finished="",
    )  # fmt: skip
    return Artifact(path, manifest)


def make_inputs(root: Path) -> dict[str, Artifact]:
    """Two sources of random documents, tokenized, packed and ordered into 24 batches of 4 rows."""
    lengths = np.random.default_rng(0).integers(2, 40, 60).tolist()
    sources = {"papers": write_source(root, "papers", lengths, 1), "web": write_source(root, "web", lengths[:30], 2)}
    pool = np.concatenate([row_ids(index, np.arange(found["rows"])) for index, found in enumerate(sources.values())])
    order = np.concatenate([np.random.default_rng(3 + epoch).permutation(pool) for epoch in range(3)])[: 24 * ROWS]
    write_order(root / "mix/order/000.u64", [order], root)
    segment = Segment(
        file="order/000.u64", first_batch=0, num_batches=24, sequence_length=LENGTH, rows_per_batch=ROWS, first_row=0
    )
    write_segments(root / "mix", Segments(sources=tuple(sources), segments=(segment,)))
    tokenized = {"sources": sources, "vocabulary_size": VOCABULARY, "end_of_document_id": 0}
    return {
        "tokenize": artifact(root / "tokenize", tokenized),
        "mix": artifact(root / "mix", {"sources": sources}),
    }


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The finished tokenize and mix stages."""
    return make_inputs(tmp_path_factory.mktemp("data"))


@pytest.fixture
def base() -> ResolvedBase:
    """A Llama of two layers."""
    init = RandomInit(init="random", hidden_size=16, layers=2, heads=2, max_length=32)
    return ResolvedBase("tiny", None, init, "base")


@pytest.fixture
def job(inputs: dict[str, Artifact], tmp_path: Path) -> Callable[..., StageJob]:
    """A train job in a fresh directory of the given name."""
    return lambda name="train", fingerprint="run": StageJob(tmp_path / name, fingerprint, inputs)


@pytest.fixture
def settings() -> Callable[..., TrainConfig]:
    """Settings of an 8-step run; keyword arguments override."""

    def build(steps: int = 8, **changes: Any) -> TrainConfig:
        values = {"tokens": steps * ROWS * LENGTH, "batch_tokens": ROWS * LENGTH, "learning_rate": 1e-2} | changes
        return TrainConfig.model_validate(values)

    return build


def read_tensors(directory: Path, step: int) -> dict[str, bytes]:
    """Bytes of all tensors of a checkpoint, by file and name."""
    found: dict[str, bytes] = {}
    for file in ("model.safetensors", "optimizer.safetensors"):
        with safe_open(directory / f"checkpoints/step-{step:06d}" / file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                numbers = stored.get_tensor(name).reshape(-1).view(torch.uint8)  # NumPy knows no bfloat16
                found[f"{file}:{name}"] = numbers.numpy().tobytes()
    return found


TIMES = {
    "tokens_per_second", "data_wait_seconds", "memory_bytes", "elapsed_seconds", "checkpoint_stall_seconds",
    "model_flops_per_second", "mfu", "recompiles",
}  # fmt: skip


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The logged records without what depends on the clock."""
    return [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in read_records(directory / "metrics.jsonl")
    ]


class CrashError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def run(job: Callable[..., StageJob], base: ResolvedBase) -> Callable[..., Manifest | None]:
    """Train in the directory ``name``; with ``crash_at`` the run dies in the evaluation after that step."""

    def work(
        config: TrainConfig, name: str = "train", crash_at: int | None = None, rows: int = 3, **changes: Any
    ) -> Manifest | None:
        def evaluate(_model: Any, step: int, _tokens: int) -> list[Score]:
            if step == crash_at:
                raise CrashError
            return []

        if crash_at is not None:
            changes |= {"hooks": Hooks(evaluate, Interval((Amount(1, "steps"),)))}
        compute = Compute(device="cpu", threads=1, micro_batch_rows=rows)
        try:
            return train(config, job(name), **{"base": base, "compute": compute} | changes)
        except CrashError:
            return None

    return work
