"""Tiny networks and batches, the same in every process, and a short training run of them in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from deepen.model.loss.chunked import IGNORED
from deepen.model.loss.model import LossModel
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import Process, set_up
from deepen.parallel.spread import spread
from deepen.train.batches.read import Batch
from deepen.train.config import TrainConfig
from deepen.train.schedule.learning_rate import PeakRate
from deepen.train.schedule.optimizer import build_optimizer
from deepen.train.step import Trainee, train_step

VOCABULARY, LENGTH = 96, 32

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def network(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random model of ``family``; qwen2 with a tied head."""
    tied = family in {"qwen2", "gemma3_text"}
    window = {"sliding_window": 7} if family in {"mistral", "starcoder2", "gemma3_text", "cohere2"} else {}
    config = AutoConfig.for_model(family, **_SHAPE, **window, tie_word_embeddings=tied, use_cache=False)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    for parameter in model.parameters():  # as after some training: nothing is zero, norms are not one
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.to(dtype).train()


def batch_of(step: int, num_rows: int = 6) -> Batch:
    """Rows of two documents each and a little padding; some labels are no targets."""
    random = np.random.default_rng(step)
    tokens = random.integers(1, VOCABULARY, (num_rows, LENGTH))
    documents, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    labels = np.full_like(tokens, IGNORED)
    for row in range(num_rows):
        cut, end = int(random.integers(5, 25)), int(random.integers(27, LENGTH + 1))
        for number, (begin, stop) in enumerate(((0, cut), (cut, end), (end, LENGTH))):
            positions[row, begin:stop] = np.arange(stop - begin)
            documents[row, begin:stop] = number if begin < end else -1
            if begin < end:
                labels[row, begin : stop - 1] = tokens[row, begin + 1 : stop]
    labels[0, 3:9] = IGNORED
    return Batch(tokens, labels, positions, documents, random.integers(0, 2, num_rows), np.zeros(num_rows, np.int64))


@dataclass(frozen=True)
class Trained:
    """What a short run left."""

    losses: list[float]
    norms: list[float]
    nll: list[float]
    """Of a held-out batch, by row, after the last step."""


CONFIG = TrainConfig(tokens=1, batch_tokens=1, learning_rate=PeakRate(1e-2), clip=0.5)


def train_tiny(family: str, mesh: dict[str, Any] | None, steps: int = 20, **changes: Any) -> Trained:
    """Some AdamW steps on ``mesh`` (None: alone), micro-batches of two rows; rows per batch vary if asked for."""
    num_rows, dtype = changes.pop("num_rows", 6), changes.pop("dtype", torch.float64)
    precision = changes.pop("precision", "fp32")
    process = set_up(Compute(device="cpu", threads=1), None if mesh is None else Mesh.model_validate(mesh))
    trainee = trainee_of(network(family, dtype), process, precision)
    results = [train_step(trainee, batch_of(step % 4, num_rows), 1e-2) for step in range(steps)]
    held_out = batch_of(999, 5)
    inputs = (torch.from_numpy(v) for v in (held_out.tokens_BT, held_out.labels_BT, held_out.positions_BT))
    trainee.model.eval()
    nll_BT = trainee.model.token_nll(*inputs)
    return Trained([r.loss for r in results], [r.gradient_norm for r in results], nll_BT.sum(1).tolist())


def trainee_of(model: PreTrainedModel, process: Process, precision: str = "fp32") -> Trainee:
    """Model and optimizer on a process, spread over its mesh."""
    loss_model = spread(LossModel(model, z_loss=1e-4), process, precision)
    optimizer = build_optimizer(loss_model.model, CONFIG)
    compute = Compute(device="cpu", threads=1, micro_batch_rows=2)
    return Trainee(loss_model, optimizer, CONFIG.clip, compute, precision, process)
