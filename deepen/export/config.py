"""Settings of the export."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deepen.settings import Many, Settings


class ExportConfig(Settings):
    """What is handed over."""

    formats: Annotated[Many[Literal["huggingface"]], Field(min_length=1)] = ("huggingface",)
    """Formats to write; `huggingface`: a folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    dtype: Literal["trained", "float32", "bfloat16"] = "trained"
    """Number format of the weights. `trained`: as in the checkpoint, float32, so nothing is lost; `bfloat16`: half the
    size, each weight rounded to 8 significant bits, as most models are published."""
    proof: Literal["logits", "tensors"] = "logits"
    """How the folder is proven: it is loaded and its `logits` compared; or its `tensors` are compared with the
    checkpoint's, one by one, without ever holding the whole model: for models larger than the memory of one machine."""
    max_shard: Annotated[str, Field(pattern=r"^[1-9]\d*(MB|GB)$")] = "5GB"
    """Largest size of one weight file; larger models are split. A file of 5 GB is quick to fetch again when a transfer
    breaks."""
    adapter: bool = False
    """Also write the adapters of a run with `train.method: lora` as they are, to `export/adapter/`, in the format of
    `peft`. The folder itself holds them merged in any case, and so loads anywhere."""
