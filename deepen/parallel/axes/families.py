"""Which model families can be spread how: those that the tests train in parity with one process. No torch.

FSDP and whole copies take any model with a list of layers; sharing matrices, rows or layers depends on a family's code.
"""

from __future__ import annotations

_PLAIN = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "smollm3", "granite", "starcoder2", "cohere",
        "cohere2", "olmo", "olmo2", "olmo3", "phi", "phi3", "arcee", "nemotron", "ernie4_5", "glm", "glm4",
    }
)  # fmt: skip

TENSOR = _PLAIN
"""Model types whose plan in transformers cuts attention by heads and nothing else that is special."""

CONTEXT = _PLAIN
"""Model types in which only attention looks from one position to another, through transformers' attention interface."""

PIPELINE = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "phi3"}
)
"""Model types whose body takes ``inputs_embeds`` and runs its list of layers in order, with nothing between that
belongs to only one of them. Gemma scales embeddings: in transformers 5 its table does, so later stages do not."""
