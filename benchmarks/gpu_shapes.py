"""The shapes that ``gpu.py`` trains, and how much of each goes onto a GPU at once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

MOST_ROWS_AT_ONCE = 8
BYTES_PER_PARAMETER = {"bf16": 18, "pure_bf16": 8}
"""bf16: fp32 weights, gradients and two moments, and bf16 copies; pure: weights, gradients and moments in bf16."""


@dataclass(frozen=True)
class Shape:
    """A dense decoder, as its published configuration has it."""

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    vocabulary: int
    tied: bool
    sequence_length: int = 4096

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of a layer."""
        return self.hidden * (2 * self.head * (self.heads + self.kv_heads) + 3 * self.feed_forward)

    @property
    def parameters(self) -> int:
        """All weights, but for norms."""
        return self.layers * self.layer_weights + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def flops_per_token(self, attention: int) -> float:
        """Forward and backward: 6 N + ``attention`` x layers x width of heads x sequence, N with the head."""
        weights = self.layers * self.layer_weights + self.vocabulary * self.hidden
        return 6.0 * weights + attention * self.layers * self.heads * self.head * self.sequence_length

    @property
    def activation_bytes_per_token(self) -> int:
        """A careful guess at what compiled layers keep for the backward pass, in bf16, without recomputation."""
        per_layer = 6 * self.hidden + 4 * self.head * (self.heads + self.kv_heads) + 4 * self.feed_forward
        return 2 * self.layers * per_layer

    def config_json(self) -> dict[str, Any]:
        """As Hugging Face writes it."""
        return {
            "model_type": self.model_type, "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head,
            "intermediate_size": self.feed_forward, "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied,
            "max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip


SHAPES = {
    "qwen3-0.6b": Shape("qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, tied=True),
    "llama-3.2-1b": Shape("llama", 2048, 16, 32, 8, 64, 8192, 128_256, tied=True),
    "qwen3-1.7b": Shape("qwen3", 2048, 28, 16, 8, 128, 6144, 151_936, tied=True),
    "qwen3-4b": Shape("qwen3", 2560, 36, 32, 8, 128, 9728, 151_936, tied=True),
    "llama-3.1-8b": Shape("llama", 4096, 32, 32, 8, 128, 14_336, 128_256, tied=False),
}
TOYS = {
    name: replace(
        shape, hidden=64, layers=2, heads=4, kv_heads=2, head=16, feed_forward=128, vocabulary=512, sequence_length=128
    )
    for name, shape in SHAPES.items()
}


@dataclass(frozen=True)
class Plan:
    """How a shape is trained."""

    loop: str
    """``deepen`` or ``Trainer``."""
    precision: str
    rows: int
    """Rows of a step."""
    rows_at_once: int
    recompute: str
    seconds: float
    """Length of the timed window."""
    warm_steps: int
    checkpoint: bool
    deterministic: bool

    def describe(self) -> str:
        """For messages."""
        return f"{self.precision}, {self.rows_at_once} of {self.rows} rows at once, recompute {self.recompute}"


def first_plan(shape: Shape, memory: int, loop: str, arguments: argparse.Namespace) -> Plan:
    """Fast and likely to fit: masters in fp32 where they leave room for activations, few rows at once if need be."""
    row = shape.activation_bytes_per_token * shape.sequence_length
    head = 3 * shape.vocabulary * shape.hidden * 4  # sums of its gradient, and casts
    room = {name: 0.9 * memory - shape.parameters * size - head for name, size in BYTES_PER_PARAMETER.items()}
    precision = "bf16" if room["bf16"] > 2 * row else "pure_bf16"
    rows_at_once = MOST_ROWS_AT_ONCE
    while rows_at_once > 1 and rows_at_once * row > room[precision]:
        rows_at_once //= 2
    recompute = "none" if row < room[precision] else "selective"
    if loop == "Trainer":  # its logits exist: bf16, and fp32 with a gradient
        rows_at_once = max(1, rows_at_once // 2)
    return Plan(
        loop=loop,
        precision=precision,
        rows=2 * MOST_ROWS_AT_ONCE,
        rows_at_once=rows_at_once,
        recompute=recompute,
        seconds=min(arguments.seconds, 1.0) if arguments.toy else arguments.seconds,
        warm_steps=2 if shape.parameters < 2e9 else 1,
        checkpoint=not arguments.no_checkpoint,
        deterministic=arguments.deterministic,
    )


def smaller_plan(plan: Plan) -> Plan | None:
    """What to try when memory ran out; None when nothing is left."""
    if plan.rows_at_once > 1:
        return replace(plan, rows_at_once=plan.rows_at_once // 2)
    if plan.recompute != "full" and plan.loop == "deepen":
        return replace(plan, recompute={"none": "selective", "selective": "full"}[plan.recompute])
    return None
