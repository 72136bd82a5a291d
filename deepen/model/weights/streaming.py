"""A base's weights straight from its files into the shards of a model that was never whole.

The model is built of placeholders (meta device) and spread over processes; then each process makes room for what it
holds and reads no other bytes. Names must be those of the files: a base whose weights transformers would rename or
merge while loading is loaded whole instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from deepen.errors import DamageError
from deepen.formats.manifest import Artifact
from deepen.formats.tokens.extension import new_rows_file, rows_for
from deepen.model.config import ResolvedBase
from deepen.model.token_tables import mean_name, read_new_rows, repaired_name, token_tables
from deepen.model.weights.load import config_of, model_of_config, read_config, unique_weights
from deepen.model.weights.pieces import StoredTensors, fill, local_box, local_part

_SIBLING = {"num_hidden_layers": 2, "vocab_size": 256}
_WEIGHTS = "model.safetensors"


def can_stream(base: ResolvedBase, tokenize: Artifact) -> bool:
    """Whether a base can be read piece by piece: a folder whose files name every weight as the model does."""
    if base.path is None:
        return False
    model = placeholders(base, tokenize)
    with StoredTensors(base.path / _WEIGHTS) as stored:
        return all(name_in(stored, model, name) is not None for name in unique_weights(model))


def placeholders(base: ResolvedBase, tokenize: Artifact) -> PreTrainedModel:
    """The model that a run begins with, of shapes without numbers."""
    if base.init is not None:
        return model_of_config(config_of(base.init, tokenize.counts["vocabulary_size"]), "meta")
    assert base.path is not None, "a resolved base is a folder or a random network"
    config = read_config(base.path)
    file = new_rows_file(tokenize.path)
    if file is not None:
        ids = read_new_rows(file)["ids"]
        config.vocab_size = rows_for(config.vocab_size, int(ids.max()) + 1 if len(ids) else 0)
    return model_of_config(config, "meta")


def sibling(base: ResolvedBase) -> PreTrainedModel:
    """A small random model of the base's architecture, on which is checked what holds for all of its size."""
    assert base.path is not None, "a random network is its own sibling"
    config = copy.deepcopy(read_config(base.path))
    layers = min(_SIBLING["num_hidden_layers"], config.num_hidden_layers)
    config.num_hidden_layers, config.vocab_size = layers, min(_SIBLING["vocab_size"], config.vocab_size)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    # These ids are beyond its small vocabulary.
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_of_config(config)


@torch.no_grad()
def stream_weights(
    model: PreTrainedModel,
    base: ResolvedBase,
    tokenize: Artifact,
    make_room: Callable[[], object],
    *,
    read: bool = True,
) -> None:
    """Give the placeholders of ``model``, spread or not, their numbers: those of the base, with rows for the tokens
    that ``tokenize`` added.

    ``make_room`` puts empty memory in place of every placeholder (``to_empty`` of what the model was spread in).
    Without ``read`` weights are left for others to fill in.
    """
    assert base.path is not None, "only a folder has weights to stream"
    # `to_empty` gives each place a tensor of its own, also where two had the same one: noted before, tied again after.
    tied = _tied_names(model)
    make_room()
    for name, kept in tied.items():
        _set_parameter(model, name, model.get_parameter(kept))
    if read:
        _read_weights(model, base.path / _WEIGHTS, new_rows_file(tokenize.path))
    _compute_buffers(model)


def _read_weights(model: PreTrainedModel, weights: Path, file: Path | None) -> None:
    tables = {id(table): name for name, table in token_tables(model).items()} if file is not None else {}
    with StoredTensors(weights) as stored:
        for name, tensor in unique_weights(model).items():
            source = name_in(stored, model, name)
            assert source is not None, "asked before: can_stream"
            if file is not None and id(tensor) in tables:
                _fill_grown(tensor, stored, source, tables[id(tensor)], file)
            else:
                fill(tensor, stored, source)


def name_in(stored: StoredTensors, model: PreTrainedModel, name: str) -> str | None:
    """A weight's name in the files, which may be those of the body alone (GPT-2's are)."""
    prefix = model.base_model_prefix + "."
    return next((found for found in (name, name.removeprefix(prefix)) if found in stored.tensors), None)


def _tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Names of parameters that are another one, by the name that is kept."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept != name:
            tied[name] = kept
    return tied


def _set_parameter(model: PreTrainedModel, name: str, parameter: Tensor) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, parameter)


def _fill_grown(tensor: Tensor, stored: StoredTensors, source: str, table: str, file: Path) -> None:
    """A table with more rows than the base has: those of its part that the base has, the mean, the new rows."""
    rows = read_new_rows(file)
    if table not in rows or mean_name(table) not in rows:
        raise DamageError(f"`{file}` has no rows for the table `{table}`", hint="run `deepen tokenize` again")
    box, local = local_box(tensor), local_part(tensor)
    first, end = box.offset[0], box.offset[0] + box.shape[0]
    columns = box.slices[1:]
    known = max(0, min(end, stored.tensors[source].shape[0]) - first)
    if known:
        part = type(box)(box.offset, (known, *box.shape[1:]))
        local[:known] = stored.read(source, part).to(local)
    mean = rows[mean_name(table)][columns] if columns else rows[mean_name(table)]
    local[known:] = mean.to(local)
    # In the order of `put_new_rows`: the mean, then repaired rows, then those of new tokens.
    for ids, values in ((rows[repaired_name(table)], None), (rows["ids"], rows[table])):
        mine = (ids >= first) & (ids < end)
        count = int(mine.sum())
        new = mean.expand(count, *mean.shape) if values is None else values[mine][(slice(None), *columns)]
        local[ids[mine] - first] = new.to(local)


def _compute_buffers(model: PreTrainedModel) -> None:
    """Compute what is in no file, such as rotary frequencies; transformers does it for what is not marked as done."""
    for tensor in model.state_dict(keep_vars=True).values():
        # All weights are in, or will be: what is in no state dict is all that may be initialised.
        tensor._is_hf_initialized = True
    with torch.random.fork_rng(devices=[]):
        model.initialize_weights()
