"""A tiny model, a byte-level tokenizer and finished artifacts with held-out documents, all made in the test."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deepen.evaluate.documents.material import HeldOutSource, Material
from deepen.formats.documents.documents import Document, content_hash, document_id, write_documents
from deepen.formats.files.atomic import entry_of
from deepen.formats.manifest import Artifact, CodeVersion, Manifest
from deepen.formats.training.checkpoints import OPTIMIZER, STATE, WEIGHTS, CheckpointManifest, checkpoint_name
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model, unique_weights

BEGIN, END = "<begin>", "<end>"
TEXTS = {
    "papers": ["the heart pumps blood through the body", "a fever is a high temperature of the body", "naïve 😀 cells"],
    "web": ["the cat sat on the mat and the dog sat on the cat", "once upon a time there was a little mat"],
    "wiki": ["rain falls from clouds", "x"],
}
LIMIT_SECONDS = 600
"""Of what is measured: so long that only ``hang`` gets there."""


def hang() -> None:
    """Never end; the alarm that is to end it is brought forward, so that no test waits for a limit or meets one."""
    left, again = signal.getitimer(signal.ITIMER_REAL)
    assert left > 0 and again > 0, "no limit is set"
    signal.setitimer(signal.ITIMER_REAL, 0.01, again)
    time.sleep(100 * LIMIT_SECONDS)


ROLES = {"papers": "domain", "web": "replay", "wiki": "watch"}


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[BEGIN, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([text for texts in TEXTS.values() for text in texts], trainer)
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base() -> ResolvedBase:
    init = RandomInit(init="random", hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=48, max_length=64)
    return ResolvedBase(name="random llama", path=None, init=init, fingerprint="base")


@pytest.fixture(scope="session")
def model(base: ResolvedBase) -> LossModel:
    loss_model = LossModel(load_model(base, vocabulary_size=300, seed=3))
    with torch.no_grad():  # a fresh network predicts almost uniformly: make it opinionated
        for parameter in loss_model.parameters():
            parameter.mul_(3)
    return loss_model.eval()


def artifact(directory: Path, stage: str, counts: dict[str, Any]) -> Artifact:
    manifest = Manifest(
        stage=stage, format=1, fingerprint=stage, config={}, inputs={}, counts=counts, code=CodeVersion(version="0"),
        started="", finished="",
    )  # fmt: skip
    return Artifact(directory, manifest)


def documents(source: str, texts: list[str]) -> list[Document]:
    return [
        Document(id=document_id(source, str(place)), text=text, source=source, content_hash=content_hash(text))
        for place, text in enumerate(texts)
    ]


@pytest.fixture
def curated(tmp_path: Path) -> Callable[[dict[str, list[str]]], Artifact]:
    """Write held-out documents by source; sources without texts have no file."""

    def make(texts: dict[str, list[str]]) -> Artifact:
        directory = tmp_path / "curate"
        for name, held_out in texts.items():
            if held_out:
                write_documents(directory / "held_out" / f"{name}.parquet", documents(name, held_out), directory)
        return artifact(directory, "curate", {"sources": {name: {"role": ROLES[name]} for name in texts}})

    return make


@pytest.fixture
def tokenized(tokenizer_folder: Path) -> Artifact:
    counts = {"vocabulary_size": 300, "begin_of_document_id": 0, "end_of_document_id": 1}
    return artifact(tokenizer_folder.parent, "tokenize", counts)


@pytest.fixture
def material(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., Material]:
    """Material of one source with the given texts, with or without a begin-of-document token."""

    def make(texts: list[str], begin: int | None = 0) -> Material:
        path = tmp_path / "held_out" / "papers.parquet"
        write_documents(path, documents("papers", texts), tmp_path)
        return Material((HeldOutSource("papers", "domain", path),), tokenizer_folder, begin)

    return make


@pytest.fixture
def trained(tmp_path: Path, base: ResolvedBase) -> Callable[[dict[int, float]], Artifact]:
    """Checkpoints by step: the base with every weight multiplied by the given factor."""

    def make(factors: dict[int, float]) -> Artifact:
        for step, factor in factors.items():
            network = load_model(base, vocabulary_size=300, seed=17)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(factor)
            write_checkpoint(tmp_path / "train" / "checkpoints" / checkpoint_name(step), network, step)
        return artifact(tmp_path / "train", "train", {})

    return make


def write_checkpoint(directory: Path, network: PreTrainedModel, step: int) -> None:
    directory.mkdir(parents=True)
    save_file({name: tensor.detach() for name, tensor in unique_weights(network).items()}, directory / WEIGHTS)
    save_file({"step": torch.tensor(step)}, directory / OPTIMIZER)
    (directory / STATE).write_text(json.dumps({"step": step, "tokens": step * 1000}))
    entries = tuple(entry_of(directory / name, directory) for name in (WEIGHTS, OPTIMIZER, STATE))
    manifest = CheckpointManifest(step=step, fingerprint="train", milestone=True, files=entries)
    (directory / "manifest.json").write_text(manifest.model_dump_json())
