"""Which model a run starts from.

A base is a pretrained model (a hub id or a folder), the export of an earlier run, or a fresh random network. What the
recipe says is one of ``BaseSetting``; ``ResolvedBase`` is the same once everything is on the local disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from deepen.settings import Count, Settings

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
"""Patterns of the files in a model folder that belong to its tokenizer."""

Architecture = Literal["llama", "mistral", "qwen2", "qwen3", "gpt2"]


class RandomInit(Settings):
    """A network with random weights, to pretrain from scratch: ``{init: random, hidden_size: 128, layers: 4, ...}``."""

    init: Literal["random"]
    """Marks the base as randomly initialised."""
    architecture: Architecture = "llama"
    """Family of the network, as Hugging Face names it."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream; a multiple of ``heads``."""
    layers: int = Field(gt=0)
    """Number of decoder blocks."""
    heads: int = Field(gt=0)
    """Attention heads per block."""
    kv_heads: int | None = Field(default=None, gt=0)
    """Key and value heads per block (grouped-query attention); None: as many as ``heads``."""
    intermediate_size: int | None = Field(default=None, gt=0)
    """Width of the feed-forward part; None: 4 x ``hidden_size`` (gpt2) or 8/3 x, up to a multiple of 64."""
    max_length: Count = Field(default=2048, gt=0)
    """Longest sequence that the network is made for, in tokens."""
    tied: bool = True
    """Use the embedding table as output head; saves parameters in small models."""

    @model_validator(mode="after")
    def _divisible(self) -> RandomInit:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be an even multiple of heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.architecture == "gpt2" and self.kv_heads not in (None, self.heads):
            raise ValueError("gpt2 has no grouped-query attention: leave out kv_heads")
        return self

    def config_json(self, vocabulary_size: int) -> dict[str, Any]:
        """The ``config.json`` of this network for a vocabulary, in Hugging Face's names (special ids are left open)."""
        shared = {
            "model_type": self.architecture, "vocab_size": vocabulary_size, "tie_word_embeddings": self.tied,
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip
        if self.architecture == "gpt2":
            return shared | {
                "n_embd": self.hidden_size, "n_layer": self.layers, "n_head": self.heads,
                "n_positions": self.max_length, "n_inner": self.intermediate_size,
                "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            }  # fmt: skip
        return shared | {
            "hidden_size": self.hidden_size, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads or self.heads, "head_dim": self.hidden_size // self.heads,
            "intermediate_size": self.intermediate_size or 64 * -(-self.hidden_size * 8 // (3 * 64)),
            "max_position_embeddings": self.max_length,
        } | ({"sliding_window": None} if self.architecture == "mistral" else {})  # fmt: skip


class BaseRun(Settings):
    """The model that an earlier run exported: ``{run: runs/earlier}``."""

    run: str
    """Directory of the earlier run."""


def _kind_of_base(value: Any) -> str:
    if isinstance(value, RandomInit) or (isinstance(value, Mapping) and "run" not in value):
        return "random"
    return "run" if isinstance(value, Mapping | BaseRun) else "pretrained"


BaseSetting = Annotated[
    Annotated[str, Tag("pretrained")] | Annotated[BaseRun, Tag("run")] | Annotated[RandomInit, Tag("random")],
    Discriminator(_kind_of_base),
]
"""A hub id or folder, ``{run: PATH}``, or ``{init: random, ...}``."""


@dataclass(frozen=True)
class ResolvedBase:
    """A base that is ready to load: a local folder, or the recipe of a random network."""

    name: str
    """What the user called it; shown in reports and cards."""
    path: Path | None
    """Folder with config.json, safetensors weights and tokenizer; None for a random network."""
    init: RandomInit | None
    """The random network; None for a pretrained base."""
    fingerprint: str
    """Identity of the base's contents."""
