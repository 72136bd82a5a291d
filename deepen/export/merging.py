"""Adapters into weights: what is handed over is a plain model, proven to be the model that was trained.

The sum is made in the precision of training (float32); only then are weights rounded to what is exported. If it is
wanted, the adapters are also written as they were, in peft's own folder format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from deepen.export.huggingface import logits_of, require_equal, rounding_allowance
from deepen.formats.training.adapters import Adapters
from deepen.model.adapters import adapters_of, merge_adapters, save_adapters
from deepen.model.token_tables import token_tables

ADAPTER_FOLDER = "adapter"

_FP32_OVER_BF16 = 2**-9
"""Sums of thousands of products err by some 2^6 units of float32's last place, 2^-24: the allowance for rounding to
bfloat16 (2^-9) times this is 2^-18."""


@dataclass(frozen=True)
class Merged:
    """What was merged, and what that did to the logits."""

    adapters: Adapters
    difference: float
    """Largest absolute difference of logits, adapters beside the weights against merged, in float32."""


def merge(model: PreTrainedModel, tokens: Sequence[Tensor], folder: Path | None, *, base_name: str) -> Merged | None:
    """Merge the adapters of ``model`` in place; None when it has none. With a ``folder``, write them there before.

    Raises ``DeepenError`` when the merged model gives other logits on ``tokens`` than rounding explains.
    """
    adapters = adapters_of(model)
    if adapters is None:
        return None
    before = logits_of(model, tokens)
    if folder is not None:
        # While they still stand apart.
        save_adapters(model, folder, base_name=base_name)
        (folder / "README.md").write_text(_readme(model, adapters, base_name))
    merge_adapters(model)
    allowance = rounding_allowance(model, before) * _FP32_OVER_BF16
    message = "the weights with merged adapters give other logits than the adapters beside them"
    return Merged(adapters, require_equal(before, logits_of(model, tokens), allowance, message))


def _readme(model: PreTrainedModel, adapters: Adapters, base_name: str) -> str:
    rows = token_tables(model)["input"].shape[0]
    resize = f"base.resize_token_embeddings({rows})  # as many rows as the adapter was trained with\n"
    return (
        f"---\nlibrary_name: peft\nbase_model: {base_name}\n---\n\n# Adapter for {base_name}\n\n{adapters.title}. The "
        "folder above holds the same model with the adapter merged.\n\n```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base_name}")\n{resize if adapters.tables else ""}'
        'model = PeftModel.from_pretrained(base, "PATH/adapter")\n```\n'
    )
