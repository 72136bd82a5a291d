"""Every probe on a tiny model that several processes share; what it measures must not depend on how they do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from deepen.evaluate.config import EvaluateConfig
from deepen.evaluate.during_training.in_loop import InLoop, in_loop_evaluator
from deepen.evaluate.items.tables import Outcome, table_of
from deepen.evaluate.probes.item_probe import ItemProbe
from deepen.evaluate.stage import baseline
from deepen.formats.documents.documents import Document, content_hash, document_id, write_documents
from deepen.formats.files.records import read_records
from deepen.formats.manifest import Artifact, StageJob, open_artifact, read_manifest
from deepen.formats.training.scores import Score
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.generate import Decoding, generate
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import set_up
from deepen.parallel.spread import process_of, spread
from tests.evaluate.conftest import artifact, hang

CPU = Compute(device="cpu", threads=1)
BASE = ResolvedBase(
    name="random llama",
    path=None,
    init=RandomInit(init="random", hidden_size=32, layers=3, heads=4, kv_heads=2, intermediate_size=48, max_length=256),
    fingerprint="base",
)
WORDS = "heart blood fever body cell rain cloud river stone light bread winter".split()


def config_of(root: Path, *more: dict[str, Any]) -> EvaluateConfig:
    """All kinds of probes, small enough for a test; numbers of items that no number of processes divides."""
    small = {"in_loop_items": 7}
    probes = [
        *more,
        {"use": "held_out", "in_loop_tokens": 400, "context": 48},
        {"use": "multiple_choice", "path": str(root / "exam.jsonl"), **small},
        {"use": "cloze", "path": str(root / "cloze.jsonl"), **small},
        {"use": "exact_answer", "path": str(root / "asked.jsonl"), "max_tokens": 5, **small},
        {"use": "facts", "path": str(root / "facts.jsonl"), "max_tokens": 6, **small},
        {"use": "arithmetic", "count": 9, **small},
        {"use": "instructions", "count": 9, **small},
        {"use": "samples", "max_tokens": 12, "per_source": 1},
        {"use": "samples", "name": "drawn", "max_tokens": 12, "temperature": 1.0, "general": ["the", "A cell", "x y"]},
    ]  # fmt: skip
    if any(one["use"].endswith("Unlucky") for one in more):
        probes = [one for one in probes if one["use"] in ("held_out", "facts") or one in more]
    return EvaluateConfig.model_validate({"probes": probes})


def base_of(folder: str | None) -> ResolvedBase:
    """The random base, or the pretrained model in ``folder``."""
    return BASE if folder is None else ResolvedBase(folder, Path(folder), None, "base")


def write_inputs(root: Path, tokenizer: Path, *more: dict[str, Any], model: str | None = None) -> None:
    """Held-out documents, items and the baseline of one process, under ``root``."""
    lines: dict[str, list[dict[str, Any]]] = {"exam": [], "cloze": [], "asked": [], "facts": []}
    for n in range(15):
        one, other, third = WORDS[n % 12], WORDS[(n + 3) % 12], WORDS[(n + 7) % 12]
        lines["exam"].append({"question": f"{one} {n}?", "choices": [one, f"{other} {third}", third], "answer": n % 3})
        lines["cloze"].append({"text": f"The {one} and _ in {n}.", "choices": [other, third], "answer": n % 2})
        lines["asked"].append({"question": f"What is {one} {other}" * (1 + n % 3), "answer": third})
        lines["facts"].append({"prompt": f"{one} {other} is", "completion": third})
    for name, rows in lines.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"papers": "domain", "web": "replay"}
    for name in sources:
        texts = [" ".join(WORDS[(n * k + len(name)) % 12] for k in range(1, 10 + 9 * n)) for n in range(1, 8)]
        found = [
            Document(id=document_id(name, str(n)), text=text, source=name, content_hash=content_hash(text))
            for n, text in enumerate(texts)
        ]
        write_documents(root / "curate" / "held_out" / f"{name}.parquet", found, root / "curate")
    job = StageJob(root / "baseline", "baseline", inputs_of(root, tokenizer))
    baseline(config_of(root, *more), job, base=base_of(model), compute=CPU)


def inputs_of(root: Path, tokenizer: Path) -> dict[str, Artifact]:
    """Artifacts of the stages before."""
    counts = {"vocabulary_size": 300, "begin_of_document_id": 0, "end_of_document_id": 1}
    roles = {"papers": {"role": "domain"}, "web": {"role": "replay"}}
    found = {
        "curate": artifact(root / "curate", "curate", {"sources": roles}),
        "tokenize": artifact(tokenizer.parent, "tokenize", counts),
    }
    if read_manifest(root / "baseline") is not None:
        made = open_artifact(root / "baseline")
        assert made is not None
        found["baseline"] = made
    return found


def shared_model(mesh: dict[str, Any] | None, folder: str | None = None) -> LossModel:
    """A model in fp64 that is not quite the base, on this process and those beside it."""
    process = set_up(CPU, None if mesh is None else Mesh.model_validate(mesh))
    model = LossModel(load_model(base_of(folder), vocabulary_size=300, seed=3))
    with torch.no_grad():  # a fresh network predicts almost uniformly: make it opinionated
        for parameter in model.parameters():
            parameter.mul_(1.02 if folder else 3)
    return spread(model.to(torch.float64), process)


@dataclass(frozen=True)
class Found:
    """What one process found."""

    scores: list[Score]
    tables: dict[str, list[dict[str, Any]]]
    greedy: list[list[int]]
    likeliest: list[list[int]]
    failed: list[str]
    """Reasons, as rank 0 wrote them down."""


def measure(
    root: str, tokenizer: str, mesh: dict[str, Any] | None, *more: dict[str, Any], real: str | None = None
) -> Found:
    """All probes in the loop, as training calls them."""
    folder = Path(root)
    out = folder / "train" / "-".join(f"{name}{size}" for name, size in (mesh or {}).items())
    inputs = inputs_of(folder, Path(tokenizer))
    evaluator = in_loop_evaluator(config_of(folder, *more), inputs, base=base_of(real), seed=17, out=out)
    assert isinstance(evaluator, InLoop)
    model = shared_model(mesh, real)
    model.train()
    scores = evaluator(model, 1, 10)
    assert model.training
    tables = {label: one(model, None).to_pylist() for (label, _), one in evaluator._measures.items() if label != "bad"}
    prompts = [[5 + n, *range(20, 20 + 3 * n)] for n in range(3)]
    greedy = generate(model, prompts, Decoding(6, end_ids=[7]))
    tokens_BT = torch.arange(3 * 11).view(3, 11) * 7 % 300
    model.eval()
    likeliest = model.likeliest(tokens_BT, torch.arange(11).expand(3, 11))
    process = process_of(model)
    if process is not None:
        process.barrier()  # rank 0 has written everything
    failed = [record["reason"] for record in read_records(out / "probes" / "failed.jsonl")]
    return Found(scores, tables, greedy, likeliest.tolist(), failed)


class Unlucky(ItemProbe):
    """A probe that goes wrong on one process alone."""

    use: str = "tests.parallel.probes:Unlucky"
    name: str | None = "bad"
    how: str = "raise"
    rank: int = 1

    def prepare(self, material: Any) -> Callable[[LossModel, str | None], pa.Table]:
        """See ``Probe``."""
        is_here = os.environ.get("RANK") == str(self.rank)
        if is_here and self.how == "prepare":
            raise OSError("no such file on this node")

        def work(model: LossModel, _what: str | None) -> pa.Table:
            tokens_BT = torch.arange(12).view(2, 6)
            for turn in range(4):
                if is_here and turn == 2 and self.how == "raise":
                    raise ZeroDivisionError("of all processes only this one")
                if is_here and turn == 2 and self.how == "hang":
                    hang()
                model.token_nll(tokens_BT, tokens_BT, torch.arange(6).expand(2, 6))
            return table_of(Outcome(str(n), "x", str(n), value=1.0) for n in range(3))

        return work
