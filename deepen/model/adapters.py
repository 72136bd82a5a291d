"""Low-rank adapters in a Hugging Face model: put in, stored, merged and handed over, with peft's layers.

peft's layers stand inside the model, which stays what it is (``get_input_embeddings``, names of its own weights,
``base_model``), so loss, evaluation and parallel layouts know nothing of them. The base is frozen and stays out of
checkpoints. Tables that are trained whole are trained in place, without the copy that peft would keep beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deepen.errors import DamageError, DeepenError
from deepen.formats.training.adapters import ADAPTERS, ALL_LINEAR, Adapters, read_adapters
from deepen.formats.training.checkpoints import CheckpointInfo
from deepen.model.config import ResolvedBase
from deepen.model.token_tables import token_tables
from deepen.model.weights.load import ADAPTERS_OF_MODEL, is_adapter, load_weights, unique_weights
from deepen.model.weights.tensor_files import write_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_NAME = "default"
_NAME_THAT_PEFT_TIES = "embed_tokens"
_PEFT_PREFIX = "base_model.model."
MISSING_PEFT = "pip install 'deepen[lora]'"


def add_adapters(model: PreTrainedModel, adapters: Adapters, *, seed: int) -> None:
    """Freeze ``model`` and put adapters beside its linear layers, in place; tables of ``adapters`` stay trainable.

    ``seed`` decides the random half of the adapters; the other half is zero, so the model computes what it did.
    Raises ``DeepenError`` when peft is missing, a target names no linear layer, or a table is not there.
    """
    peft = _peft()
    targets = target_layers(model, adapters.targets)
    modules = dict(model.named_modules())
    with torch.random.fork_rng(devices=[]):
        # A seed of their own, and outside the global stream: every start of a run makes the same adapters.
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(_peft_config(adapters, targets, modules), model, adapter_name=_NAME)
    tables = token_tables(model)
    for name in adapters.tables:
        if name not in tables:
            raise DeepenError(f"the model has no table `{name}` to train", hint="its head is tied to its embedding")
        # After peft, which freezes all that is not its own.
        tables[name].requires_grad_(True)
    setattr(model, ADAPTERS_OF_MODEL, adapters)


def adapters_of(model: PreTrainedModel) -> Adapters | None:
    """The adapters in ``model``; None when it has none."""
    found: Adapters | None = getattr(model, ADAPTERS_OF_MODEL, None)
    return found


def adapters_record(model: PreTrainedModel) -> dict[str, Any]:
    """What ``state.json`` of a checkpoint says of the adapters in ``model``; empty when it has none."""
    adapters = adapters_of(model)
    return {} if adapters is None else {ADAPTERS: adapters.model_dump(mode="json")}


def target_layers(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    """Names of the linear layers (head left out) that match a pattern, whole or in their last part (``*_proj``).

    Raises ``DeepenError`` for a pattern that matches nothing.
    """
    head = model.get_output_embeddings()
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if pattern == ALL_LINEAR or _matches(name, pattern)}
        if not found:
            raise DeepenError(
                f"`train.method.targets`: no linear layer of the model matches `{pattern}`",
                hint=f"their names are like {', '.join(names[:3]) or '(there are none)'}; * stands for anything",
            )
        chosen |= found
    return [name for name in names if name in chosen]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(_last(name), pattern)


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise DeepenError("adapters need the package `peft`, which is not installed", hint=MISSING_PEFT) from error


def _peft_config(adapters: Adapters, targets: list[str], modules: dict[str, nn.Module]) -> Any:
    return _peft().LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules=targets,
        use_rslora=adapters.rank_stabilized,
        use_dora=adapters.dora,
        fan_in_fan_out=any(isinstance(modules[name], Conv1D) for name in targets),
        task_type="CAUSAL_LM",
    )


def put_checkpoint(model: PreTrainedModel, info: CheckpointInfo, base: ResolvedBase) -> None:
    """Put the weights of a checkpoint into ``model``, in place: of a whole checkpoint all, of adapters those and the
    tables that were trained with them. This is how every stage but a resuming training opens checkpoints.

    ``model`` is what the run began with (``load_run_model``), or a model that had another checkpoint of the same run
    put in. Raises ``DamageError`` when checkpoint and model do not belong together.
    """
    adapters = read_adapters(info)
    if adapters is not None and adapters.base != base.fingerprint:
        raise DamageError(
            f"the adapters in `{info.path}` belong to another base than `{base.name}`",
            hint="the base has changed since training: bring it back, or train again",
        )
    if adapters is not None and adapters_of(model) is None:
        # Any seed will do: the checkpoint has every number that it draws.
        add_adapters(model, adapters, seed=0)
    if adapters != adapters_of(model):
        raise DamageError(f"`{info.path}` was trained by another method than the model before it")
    load_weights(model, info.weights)


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Add the adapters to the weights that they stand beside, and take them out: a plain model again, in place.

    Raises ``DeepenError`` when an adapter is not finite. A model without adapters is left as it is.
    """
    if adapters_of(model) is None:
        return model
    layers = _peft().tuners.tuners_utils.BaseTunerLayer
    for name, module in list(model.named_modules()):
        if isinstance(module, layers):
            try:
                # Safe: it looks for numbers that are not finite before it changes the weight.
                module.merge(safe_merge=True)
            except ValueError as error:
                raise DeepenError(f"the adapter of `{name}` cannot be merged: {error}") from error
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    del model.peft_config
    delattr(model, ADAPTERS_OF_MODEL)
    return model


def save_adapters(model: PreTrainedModel, folder: Path, *, base_name: str) -> None:
    """Write the adapters of ``model`` (not merged) as a folder that ``PeftModel.from_pretrained(base, folder)`` reads.

    Tables that were trained whole are in it, too; a base whose vocabulary grew must be given as many rows first.
    """
    adapters = adapters_of(model)
    assert adapters is not None, "there is nothing to save of a model without adapters"
    peft, config = _peft(), model.peft_config[_NAME]
    weights = dict(peft.get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False))
    weights |= {name: tensor for name, tensor in unique_weights(model).items() if _is_trained_table(name, tensor)}
    names = {id(module): name for name, module in model.named_modules()}
    tables = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    is_tied = "output" not in token_tables(model)
    wanted = [table for table in adapters.tables if table in tables]
    if is_tied and wanted:  # peft wants the table a second time, under the head's name
        weights[f"{names[id(tables['output'])]}.weight"] = tables["output"].weight
        config.ensure_weight_tying = _last(names[id(tables["input"])]) == _NAME_THAT_PEFT_TIES
        wanted = ["input"] if config.ensure_weight_tying else ["input", "output"]
    config.modules_to_save = [_last(names[id(tables[table])]) for table in wanted] or None
    config.base_model_name_or_path, config.inference_mode = base_name, True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    write_tensors(folder / ADAPTER_WEIGHTS, {_PEFT_PREFIX + name: tensor for name, tensor in weights.items()})


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_trained_table(name: str, tensor: Tensor) -> bool:
    return tensor.requires_grad and not is_adapter(name)
