"""The folder of a model that no process can hold: its tensors go from the checkpoint's pieces to the files one by one.

Names, files and bytes are those that ``save_pretrained`` would write of the whole model. Logits of such a model cannot
be compared here; instead every written tensor is read again and compared, bit by bit, with what the checkpoint holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from deepen.errors import DeepenError
from deepen.export.huggingface import DTYPES, SpecialIds, hand_on_settings
from deepen.formats.tokens.extension import Extension
from deepen.model.weights.load import unique_weights
from deepen.model.weights.pieces import StoredTensors
from deepen.model.weights.streaming import name_in
from deepen.model.weights.tensor_files import write_streamed

_WEIGHTS = "model.safetensors"
_PATTERN = "model{suffix}.safetensors"


@dataclass(frozen=True)
class Saving:
    """Where a model goes, and what ``config.json`` and ``generation_config.json`` say besides."""

    folder: Path
    max_shard: str
    special: SpecialIds
    base: Path | None
    extension: Extension | None = None


def save_streamed(model: PreTrainedModel, weights: Path, saving: Saving, *, dtype: str) -> None:
    """Write the folder of ``model`` (placeholders) from the weights in ``weights``, which may be in pieces.

    Holds one tensor at a time. Raises ``DeepenError`` when what was written is not what was read.
    """
    number_type = DTYPES[dtype]
    config = model.config
    config.use_cache = True
    if config.eos_token_id is None:
        config.eos_token_id, config.bos_token_id = saving.special.end, saving.special.begin
    # What `save_pretrained` would state by itself.
    config.dtype, config.architectures = str(number_type).removeprefix("torch."), [type(model).__name__]
    config.save_pretrained(saving.folder)
    special = saving.special
    GenerationConfig(bos_token_id=special.begin, eos_token_id=special.end).save_pretrained(saving.folder)
    shapes = {name: torch.empty(t.shape, dtype=number_type, device="meta") for name, t in unique_weights(model).items()}
    split = split_torch_state_dict_into_shards(shapes, filename_pattern=_PATTERN, max_shard_size=saving.max_shard)
    with StoredTensors(weights) as stored:
        for file, names in split.filename_to_tensors.items():
            write_streamed(
                saving.folder / file,
                # The order in which safetensors' own writer puts tensors of one precision.
                {name: shapes[name] for name in sorted(names)},
                _reader(stored, model, number_type),
            )
        _compare(stored, model, saving.folder, split.tensor_to_filename, number_type)
    if split.is_sharded:
        _write_index(saving.folder, split, sum(shape.numel() for shape in shapes.values()))
    hand_on_settings(saving.folder, saving.base, saving.extension, num_rows=len(model.get_input_embeddings().weight))


def _reader(stored: StoredTensors, model: PreTrainedModel, dtype: torch.dtype) -> Any:
    def read(name: str) -> Tensor:
        source = name_in(stored, model, name)
        assert source is not None, "the names of a checkpoint are those of its model"
        return stored.read(source).to(dtype)

    return read


def _compare(
    stored: StoredTensors, model: PreTrainedModel, folder: Path, files: dict[str, str], dtype: torch.dtype
) -> None:
    read = _reader(stored, model, dtype)
    for name, written in _written(folder, files):
        if not torch.equal(written, read(name)):
            raise DeepenError(
                f"export: `{name}` was written differently than it was trained",
                hint="no manifest was written; do not use this folder, and look at the disk",
            )


def _written(folder: Path, files: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(set(files.values())):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield name, opened.get_tensor(name)


def _write_index(folder: Path, split: Any, num_parameters: int) -> None:
    index = {
        "metadata": {"total_parameters": num_parameters, **split.metadata},
        "weight_map": split.tensor_to_filename,
    }
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / f"{_WEIGHTS}.index.json").write_text(text, encoding="utf-8")
