"""A finished run in miniature, from held-out documents to a choice, with a real checkpoint of a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deepen.export.config import ExportConfig
from deepen.export.stage import export
from deepen.formats.documents.documents import Document, content_hash, document_id, write_documents
from deepen.formats.files.atomic import entry_of, write_json
from deepen.formats.files.records import write_records
from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
from deepen.formats.training.checkpoints import OPTIMIZER, STATE, WEIGHTS, CheckpointManifest, checkpoint_name
from deepen.formats.training.scores import CheckpointScores, Choice, Score
from deepen.model.adapters import adapters_record
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.weights.load import load_model, stored_weights
from deepen.parallel.config import Compute

BEGIN, END = "<begin>", "<end>"
TEXTS = ["the heart pumps blood", "a fever is a high temperature", "naïve cells"]
VOCABULARY_SIZE = 300


def init(*, tied: bool = True, architecture: str = "llama") -> RandomInit:
    return RandomInit(
        init="random", architecture=architecture, hidden_size=32, layers=2, heads=2, intermediate_size=48,
        max_length=64, tied=tied,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=[BEGIN, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    folder = tmp_path_factory.mktemp("tokenized") / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END).save_pretrained(folder)
    return folder


def finished(directory: Path, stage: str, counts: dict[str, Any], config: dict[str, Any] | None = None) -> Artifact:
    directory.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        stage=stage, format=1, fingerprint=f"{stage}-fingerprint", config=config or {}, inputs={}, counts=counts,
        code=CodeVersion(version="0.1.0"), started="", finished="",
    )  # fmt: skip
    return Artifact(directory, manifest)


def score(probe: str, ability: str, difference: float) -> Score:
    return Score(
        probe=probe, ability=ability, value=2.0 * (1 + difference), baseline=2.0, difference=difference,
        interval=(difference - 0.01, difference + 0.01), higher_is_better=False, items=3,
    )  # fmt: skip


@dataclass
class Run:
    """What an export needs, and where it writes."""

    lineage: dict[str, Artifact]
    out: Path
    network: PreTrainedModel
    """The trained model, as it was in memory."""
    base: ResolvedBase

    def export(
        self, config: ExportConfig | None = None, out: Path | None = None, previous: Artifact | None = None
    ) -> Manifest:
        inputs = {name: self.lineage[name] for name in ("tokenize", "train", "select")}
        return export(
            config or ExportConfig(), StageJob(out or self.out, "f", inputs, previous=previous), base=self.base,
            compute=Compute(device="cpu", threads=1), lineage=self.lineage,
        )  # fmt: skip

    def choose(self, step: int | None) -> None:
        """Replace the choice."""
        choice = Choice(step=step, rule="best_new_within_budget", reason="Because of the numbers.", candidates=())
        write_json(self.lineage["select"].path / "choice.json", choice.model_dump(mode="json"))


def write_checkpoint(train: Path, network: PreTrainedModel, step: int) -> None:
    directory = train / "checkpoints" / checkpoint_name(step)
    directory.mkdir(parents=True)
    save_file({name: tensor.detach() for name, tensor in stored_weights(network).items()}, directory / WEIGHTS)
    save_file({"step": torch.tensor(step)}, directory / OPTIMIZER)
    (directory / STATE).write_text(json.dumps({"step": step, "tokens": step * 1000, **adapters_record(network)}))
    entries = tuple(entry_of(directory / name, directory) for name in (WEIGHTS, OPTIMIZER, STATE))
    manifest = CheckpointManifest(step=step, fingerprint="train", milestone=True, files=entries)
    (directory / "manifest.json").write_text(manifest.model_dump_json())


def lineage_of(root: Path, tokenizer: Path) -> dict[str, Artifact]:
    """Finished stages with counts such as theirs; one source has no licence."""
    curated = {
        "papers": {"role": "domain", "licence": "CC-BY-4.0", "documents_kept": 1234, "held_out": 3},
        "web": {"role": "replay", "licence": None, "documents_kept": 777, "held_out": 0},
    }
    scored = {"bits_per_byte": 2.0, "scored": 3, "ability": "new"}
    unscored = {"bits_per_byte": None, "scored": 0, "ability": "kept"}
    tokens = {"papers": {"tokens": 55_555, "role": "domain"}, "web": {"tokens": 44_444, "role": "replay"}}
    trained = {"papers": {"tokens": 7_000}, "web": {"tokens": 3_000}}
    ids = {"vocabulary_size": VOCABULARY_SIZE, "begin_of_document_id": 0, "end_of_document_id": 1}
    rows = {"phases": [{"sequence_length": 64, "rows_per_batch": 4}]}
    training = {"sources": trained, "steps": 10, "skipped_batches": 0, "final_loss": 3.25}
    return {
        "curate": finished(root / "curate", "curate", {"sources": curated}),
        "tokenize": finished(tokenizer.parent, "tokenize", {"sources": tokens, **ids}),
        "mix": finished(root / "mix", "mix", rows),
        "train": finished(root / "train", "train", training, {"tokens": 10_000}),
        "evaluate": finished(root / "evaluate", "evaluate", {"sources": {"papers": scored, "web": unscored}}),
        "select": finished(root / "select", "select", {}),
    }


@pytest.fixture
def make_run(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., Run]:
    """A run of a random network (``RandomInit`` as given) whose checkpoint at step 10 was chosen."""

    def make(network: RandomInit | None = None) -> Run:
        base = ResolvedBase(name="random llama", path=None, init=network or init(), fingerprint="base")
        trained = load_model(base, vocabulary_size=VOCABULARY_SIZE, seed=99).eval()
        lineage = lineage_of(tmp_path, tokenizer_folder)
        write_checkpoint(lineage["train"].path, trained, 10)
        documents = [
            Document(id=document_id("papers", text), text=text, source="papers", content_hash=content_hash(text))
            for text in TEXTS
        ]
        write_documents(lineage["curate"].path / "held_out" / "papers.parquet", documents, tmp_path)
        scores = (score("held_out:papers", "new", -0.25), score("held_out", "new", -0.25))
        record = CheckpointScores(step=10, tokens=10_000, scores=scores).model_dump(mode="json")
        write_records(lineage["evaluate"].path / "scores.jsonl", [record], tmp_path)
        run = Run(lineage, tmp_path / "export", trained, base)
        run.choose(10)
        return run

    return make


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    """The run of a tied tiny Llama."""
    return make_run()


@pytest.fixture
def without_kept(run: Run) -> Run:
    """The same run with its lineage not naming any kept source."""
    sources = {"papers": run.lineage["evaluate"].counts["sources"]["papers"]}
    manifest = run.lineage["evaluate"].manifest.model_copy(update={"counts": {"sources": sources}})
    run.lineage["evaluate"] = replace(run.lineage["evaluate"], manifest=manifest)
    return run
