"""Arithmetic of a decoder from its ``config.json`` alone: parameters, FLOPs per token, bytes of training state.

Covers the dense families that share the Llama layout (Llama, Mistral, Qwen, Gemma, ...) and GPT-2. It reads JSON and
imports no model library, so that planning answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ADAMW_BYTES_PER_PARAMETER = 16
"""fp32 weights, gradient and two moments: 4 + 4 + 8."""


@dataclass(frozen=True)
class Architecture:
    """Shape of a dense decoder-only transformer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocabulary_size: int
    max_length: int
    tied: bool
    gated: bool = True
    """Three feed-forward matrices (gate, up, down) instead of two."""
    attention_bias: bool = False
    """Bias on the query, key and value projections (Qwen2)."""
    gpt2: bool = False
    """GPT-2 layout: learned positions, biases everywhere, LayerNorm."""

    @property
    def parameters_per_layer(self) -> int:
        """Weights of one block: attention, feed-forward and two norms."""
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        attention = self.hidden_size * (2 * queries + 2 * keys)  # query and output, key and value
        feed_forward = (3 if self.gated else 2) * self.hidden_size * self.intermediate_size
        if self.gpt2:
            # Of attention and feed-forward, inner and outer.
            biases = queries + 2 * keys + self.hidden_size + self.intermediate_size + self.hidden_size
            return attention + feed_forward + biases + 4 * self.hidden_size  # two LayerNorms of two vectors
        return attention + feed_forward + 2 * self.hidden_size + (queries + 2 * keys) * self.attention_bias

    @property
    def num_parameters(self) -> int:
        """All weights, a tied head counted once."""
        tables = self.vocabulary_size * self.hidden_size * (1 if self.tied else 2)
        positions = self.max_length * self.hidden_size if self.gpt2 else 0
        final_norm = self.hidden_size * (2 if self.gpt2 else 1)
        return self.num_layers * self.parameters_per_layer + tables + positions + final_norm

    @property
    def matrix_parameters(self) -> int:
        """Weights that take part in matrix products: all but the input embedding, with the head even where it is tied.

        Vectors of norms are counted, too; they are few."""
        head = self.vocabulary_size * self.hidden_size
        return self.num_layers * self.parameters_per_layer + head + self.hidden_size

    def training_flops_per_token(self, sequence_length: int, *, frozen: int = 0, added: int = 0) -> float:
        """Forward and backward: 6 N + 12 L d T, N without the input embedding but with the head (PaLM, appendix B).

        Of the six, two are the gradient of a weight itself, which ``frozen`` ones of N do not need; ``added`` weights
        are adapters beside them.
        """
        attention = 12 * self.num_layers * self.num_heads * self.head_size * sequence_length
        return 6 * (self.matrix_parameters + added) - 2 * frozen + attention

    def adapter_parameters(self, rank: int, *, row_lengths: bool = False) -> int:
        """Weights of low-rank adapters beside every linear layer but the head: rank x (inputs + outputs) each; with
        ``row_lengths`` (DoRA) one more per output."""
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        if self.gpt2:  # queries, keys and values are one layer
            shapes = [(width, queries + 2 * keys), (queries, width), (width, inner), (inner, width)]
        else:
            shapes = [(width, queries), (width, keys), (width, keys), (queries, width), (inner, width)]
            shapes += [(width, inner)] * (2 if self.gated else 1)
        return self.num_layers * sum(rank * (a + b) + b * row_lengths for a, b in shapes)

    def activation_bytes(self, tokens: int) -> float:
        """Saved activations of ``tokens`` tokens in fp32, logits never whole (Korthikanti et al. 2205.05198, 34 s b h).

        The factor is for two-byte values and a feed-forward of 4 h; here twice that, with the real feed-forward width.
        """
        # 34 h with a feed-forward of 4 h is 18 h, and 4 for each inner value; a gated one keeps half as many more.
        per_token = self.hidden_size * (18 + 4 * (1.5 if self.gated else 1) * self.intermediate_size / self.hidden_size)
        return 2.0 * self.num_layers * per_token * tokens


def architecture_from_config(config: Mapping[str, Any]) -> Architecture:
    """Read a Hugging Face ``config.json``; raises ``KeyError`` naming the entry that is not there."""
    if config.get("model_type") == "gpt2":
        return _gpt2(config)
    heads = config["num_attention_heads"]
    hidden_size = config["hidden_size"]
    return Architecture(
        hidden_size=hidden_size,
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,  # absent where each query head has its own
        head_size=config.get("head_dim") or hidden_size // heads,  # some families set it apart (Gemma, Qwen3)
        intermediate_size=config["intermediate_size"],
        vocabulary_size=config["vocab_size"],
        max_length=config.get("max_position_embeddings", 2048),
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=config.get("model_type") == "qwen2" or bool(config.get("attention_bias")),
    )


def _gpt2(config: Mapping[str, Any]) -> Architecture:
    hidden_size, heads = config["n_embd"], config["n_head"]
    return Architecture(
        hidden_size=hidden_size,
        num_layers=config["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_size=hidden_size // heads,
        intermediate_size=config.get("n_inner") or 4 * hidden_size,
        vocabulary_size=config["vocab_size"],
        max_length=config["n_positions"],
        tied=True,
        gated=False,
        gpt2=True,
    )
