"""Loading models and tokenizers: from local folders only, safetensors only, never code that comes with a model.

Weights are held in fp32 by default (the master copy of mixed precision); lower precision is the training loop's choice.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils import logging as transformers_logging

from deepen.errors import DamageError, DeepenError
from deepen.formats.manifest import Artifact
from deepen.formats.tokens.extension import new_rows_file, read_extension
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.token_tables import put_new_rows, token_tables
from deepen.model.weights.pieces import StoredTensors, fill

ADAPTERS_OF_MODEL = "deepen_adapters"
"""Attribute of a model that has adapters: their ``Adapters`` (see ``model/adapters.py``)."""

_NO_SDPA = {"gemma2"}
"""Families without scaled-dot-product attention in transformers 5: their eager attention is used."""


def load_run_model(base: ResolvedBase, tokenize: Artifact, *, seed: int) -> PreTrainedModel:
    """The model that a run begins with: the base, with rows for the tokens that ``tokenize`` added, if it did."""
    size = tokenize.counts["vocabulary_size"]
    return load_model(base, vocabulary_size=size, seed=seed, new_rows=new_rows_file(tokenize.path))


def load_base_model(base: ResolvedBase, tokenize: Artifact, *, seed: int) -> PreTrainedModel:
    """The base as it is without the run: with no rows for tokens that ``tokenize`` added."""
    extension = read_extension(tokenize.path)
    size = tokenize.counts["vocabulary_size"] if extension is None else extension.base_vocabulary_size
    return load_model(base, vocabulary_size=size, seed=seed)


def load_model(
    base: ResolvedBase,
    *,
    vocabulary_size: int,
    seed: int,
    new_rows: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """The base as a causal language model on the CPU, ready to train (train mode, no cache).

    ``vocabulary_size`` is the number of token ids of the run's tokenizer: a random network gets exactly that many rows,
    a pretrained one must have at least as many (the surplus is padding and stays) once it has grown by ``new_rows``, a
    ``new_rows.safetensors``. ``seed`` decides random weights, whatever the state of the global generators. Raises
    ``DeepenError`` when the folder cannot be used.
    """
    if base.init is not None:
        return _random_model(base.init, vocabulary_size, seed, dtype)
    assert base.path is not None, "a resolved base is a folder or a random network"
    model = _pretrained_model(base.path, dtype)
    if new_rows is not None:
        put_new_rows(model, new_rows)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < vocabulary_size:
        raise DeepenError(
            f"`{base.name}` has {rows:,} embedding rows, its tokenizer {vocabulary_size:,} ids",
            hint="use the tokenizer that the model was trained with",
        )
    return model.train()


def _random_model(init: RandomInit, vocabulary_size: int, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_of_config(config_of(init, vocabulary_size), dtype=dtype)


def config_of(init: RandomInit, vocabulary_size: int) -> PretrainedConfig:
    """The configuration of a random network."""
    settings = init.config_json(vocabulary_size)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def model_of_config(
    config: PretrainedConfig, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model with random weights, or on the device ``meta`` with none, ready to train."""
    config.use_cache = False
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention_of(config), trust_remote_code=False
        )
    return model.train()


def load_token_tables(folder: Path) -> PreTrainedModel:
    """The model in ``folder`` without its layers, in the precision of its files: only the tables are read.

    It cannot compute anything; ``token_tables`` of it are the base's embedding and head.
    """
    return _pretrained_model(folder, "auto", num_layers=0)


def _pretrained_model(folder: Path, dtype: torch.dtype | str, num_layers: int | None = None) -> PreTrainedModel:
    """Load a Hugging Face folder completely: an absent weight is an error, not filled with random numbers.

    ``num_layers`` takes that many of its layers only.
    """
    config = read_config(folder)
    if num_layers is not None:
        config.num_hidden_layers = num_layers
    if not any(folder.glob("*.safetensors")):
        raise DeepenError(
            f"`{folder}` has no safetensors weights",
            hint="convert the weights to safetensors; pickled ones are not read",
        )
    config.use_cache = False
    show_progress = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what it would report is checked, and raised, below
    try:
        # Weights of another shape are passed over here as well, so that the report names all that is wrong at once.
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation=attention_of(config), use_safetensors=True,
            local_files_only=True, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DeepenError(
            f"cannot load the model in `{folder}`: {error}",
            hint="the folder must hold a complete causal language model",
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if show_progress:
            transformers_logging.enable_progress_bar()
    wrong = sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in report[kind])
    if wrong:
        raise DamageError(
            f"the weights in `{folder}` do not fit its config.json: {', '.join(wrong[:5])} ({len(wrong)} in all)",
            hint="download the model again; nothing is filled in with random weights",
        )
    return model


def attention_of(config: PretrainedConfig) -> str:
    """The attention that a family is loaded with, in transformers' names."""
    return "eager" if config.model_type in _NO_SDPA else "sdpa"


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a model folder; raises ``DeepenError`` if transformers does not know the architecture."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DeepenError(
            f"`{folder}` is no model that transformers knows: {first_line}",
            hint="give a folder with config.json; code that comes with a model is never run",
        ) from error


def load_tokenizer(folder: Path) -> FastTokenizer:
    """The tokenizer in a local folder; raises ``DeepenError`` when there is none or it has no fast version."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise DeepenError(
            f"cannot load a tokenizer from `{folder}`: {error}",
            hint="the folder needs tokenizer.json, or tokenizer.model, and tokenizer_config.json",
        ) from error
    if not isinstance(tokenizer, FastTokenizer):
        raise DeepenError(f"the tokenizer in `{folder}` has no fast version", hint="convert it to tokenizer.json")
    return tokenizer


def load_weights(model: PreTrainedModel, file: Path) -> None:
    """Copy the weights of a checkpoint's safetensors file into ``model``, in place and tensor by tensor.

    Either may be in pieces: the checkpoint of several processes has a layout beside ``file``, and of a model that is
    spread over processes each fills in what it holds. Names must agree exactly with ``stored_weights``, but that a
    stage of a pipeline has fewer; raises ``DamageError`` otherwise.
    """
    own = stored_weights(model)
    with StoredTensors(file) as stored:
        unknown = sorted(set(own) - set(stored.tensors) if _is_stage(model) else set(stored.tensors) ^ set(own))
        if unknown:
            raise DamageError(
                f"`{file}` does not fit the model: {', '.join(unknown[:5])} ({len(unknown)} names in all)",
                hint="the checkpoint belongs to another model",
            )
        for name, tensor in own.items():
            fill(tensor, stored, name)


def _is_stage(model: PreTrainedModel) -> bool:
    """Whether a pipeline left the model only some of its layers: its body's configuration counts fewer than its own."""
    body, whole = model.base_model.config, model.config
    return body is not whole and bool(getattr(body, "num_hidden_layers", 0) < getattr(whole, "num_hidden_layers", 0))


def unique_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's weights and persistent buffers by name; of tied weights only the first name (the embedding)."""
    seen: set[int] = set()
    weights: dict[str, Tensor] = {}
    # keep_vars gives the tensors themselves: without it tied ones would be two that only share memory.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights


def stored_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint holds of a model, by name: all weights (tied ones once), or of a model with adapters these and
    the tables that are trained whole; its frozen base is known by its fingerprint."""
    weights = unique_weights(model)
    if getattr(model, ADAPTERS_OF_MODEL, None) is None:
        return weights
    tables = {id(table) for table in token_tables(model).values() if table.requires_grad}
    return {name: tensor for name, tensor in weights.items() if is_adapter(name) or id(tensor) in tables}


def is_adapter(name: str) -> bool:
    """Whether a weight's name is that of an adapter."""
    return ".lora_" in name
