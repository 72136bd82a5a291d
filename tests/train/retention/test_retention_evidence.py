"""On a really trained tiny base: what penalties are for. Text sampled from the base is what it is to keep."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from transformers import AutoModelForCausalLM, AutoTokenizer

from deepen.model.loss.model import LossModel
from deepen.parallel.config import Compute
from deepen.parallel.process import set_up
from deepen.train.batches.read import IGNORED, Batch
from deepen.train.config import TrainConfig
from deepen.train.retention.importance import clip_, fisher_diagonal, one_row
from deepen.train.retention.penalties import Penalties, anchors_of
from deepen.train.schedule.learning_rate import PeakRate
from deepen.train.schedule.optimizer import build_optimizer
from deepen.train.step import Trainee, train_step

STEPS, LENGTH = 40, 128
CONFIG = TrainConfig(tokens=1, batch_tokens=1, learning_rate=PeakRate(1e-3), weight_decay=0.0)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs DEEPEN_TEST_DATA"),
]


def folder(name: str) -> Path:
    return Path(os.environ["DEEPEN_TEST_DATA"]) / name


@cache
def texts() -> dict[str, np.ndarray]:
    """Rows of token ids: medical ones to learn, the base's own to train beside, to keep, and medical ones to score."""
    base = folder("model_tinystories_656k")
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).eval()
    torch.manual_seed(0)
    begin = torch.full((160, 1), int(model.config.bos_token_id))
    with torch.inference_mode():
        own = model.generate(
            begin, attention_mask=torch.ones_like(begin), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=LENGTH - 1, max_new_tokens=LENGTH - 1, pad_token_id=int(model.config.eos_token_id),
        ).numpy()  # fmt: skip
    with zstandard.open(next(folder("medical_qa_nih").glob("corpus.jsonl.zst")), "rb") as packed:
        lines = [json.loads(line)["text"][:800] for line, _ in zip(io.TextIOWrapper(packed), range(600), strict=False)]
    ids = np.concatenate([tokenizer(line)["input_ids"] for line in lines])
    domain = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    return {"domain": domain[:-60], "new": domain[-60:], "replay": own[:100], "kept": own[100:]}


def batch_of(rows: list[tuple[str, int]]) -> Batch:
    tokens = np.stack([texts()[name][at % len(texts()[name])] for name, at in rows]).astype(np.int64)
    labels = np.full_like(tokens, IGNORED)
    labels[:, :-1] = tokens[:, 1:]
    positions = np.tile(np.arange(LENGTH), (len(rows), 1))
    source_B = np.array([int(name == "replay") for name, _ in rows])
    return Batch(tokens, labels, positions, np.zeros_like(tokens), source_B, np.zeros(len(rows), np.int64))


def loss(model: LossModel, name: str) -> float:
    batch = batch_of([(name, at) for at in range(60)])
    inputs = (torch.from_numpy(a) for a in (batch.tokens_BT, batch.labels_BT, batch.positions_BT))
    return float(model.token_nll(*inputs).sum() / (batch.labels_BT != IGNORED).sum())


@cache
def after_training(name: str, strength: float) -> dict[str, float]:
    """Loss on new and kept text after the same steps on the same rows; how far weights moved."""
    load = AutoModelForCausalLM.from_pretrained
    model: Any = load(folder("model_tinystories_656k")).train()
    loss_model, process = LossModel(model), set_up(Compute(device="cpu", threads=1), None)
    compute = Compute(device="cpu", threads=1, micro_batch_rows=8)
    trainee = Trainee(loss_model, build_optimizer(model, CONFIG), 1.0, compute, "fp32", process)
    values, base = None, None
    if name == "ewc":
        rows = batch_of([("replay", at) for at in range(100)])
        values, _, _ = fisher_diagonal(trainee, (one_row(rows, at) for at in range(100)))
        clip_(values, 99.9, process)
    if name == "kl":
        base = LossModel(load(folder("model_tinystories_656k"))).eval()
    anchors = anchors_of(model, values, None)
    strengths = {} if name == "none" else {name: strength}
    penalties = Penalties(strengths, anchors, base, np.array([False, True]))
    trainee = replace(trainee, penalties=penalties)
    for step in range(STEPS):
        rows_of_step = [("domain", 6 * step + at) for at in range(6)] + [("replay", 2 * step + at) for at in range(2)]
        train_step(trainee, batch_of(rows_of_step), 1e-3 * (1 - step / STEPS))
    moved = sum(float(anchor.moved().square().sum()) for anchor in anchors)
    return {"new": loss(loss_model, "new"), "kept": loss(loss_model, "kept"), "moved": moved}


def test_kl_on_replay_reduces_forgetting_and_the_domain_is_still_learned() -> None:
    before = LossModel(AutoModelForCausalLM.from_pretrained(folder("model_tinystories_656k")))
    new, kept = loss(before, "new"), loss(before, "kept")
    plain, held = after_training("none", 0.0), after_training("kl", 4.0)
    assert plain["kept"] - kept > 0.01, "without a penalty it forgets"
    assert held["kept"] - kept < 0.8 * (plain["kept"] - kept)
    assert new - held["new"] > 0.8 * (new - plain["new"])


@pytest.mark.parametrize(("name", "strengths"), [("ewc", (1.0, 1e5)), ("l2_sp", (0.01, 100.0))])
def test_pulls_on_weights_forget_no_more_and_hold_them_if_strong(name: str, strengths: tuple[float, float]) -> None:
    plain = after_training("none", 0.0)
    for strength in strengths:
        held = after_training(name, strength)
        assert held["kept"] <= plain["kept"] + 0.005
    strongest = after_training(name, strengths[1])
    assert strongest["moved"] < 0.3 * plain["moved"]
