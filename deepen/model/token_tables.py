"""The tables of a model that have a row for every token, and how they grow.

A causal language model has one (the embedding, used as head too) or two (with a bias in some families, which counts as
a third). A grown vocabulary needs more rows in all of them. The number of rows is kept a multiple of 128, as matrix
products and tensor parallelism want it; rows that no token has hold the mean row, so that they take little probability:
p of them at most log(1 + p/n) nats per token beside n others, whatever the context (by Jensen's inequality).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from deepen.errors import DamageError
from deepen.formats.tokens.extension import rows_for
from deepen.model.weights.pieces import local_box, local_part


def token_tables(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters with one row per token id: ``input`` [V, D]; unless it is tied ``output`` [V, D]; ``output_bias`` [V]
    where the head has one."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = {"input": embedding.weight}
    if head.weight is not embedding.weight:
        tables["output"] = head.weight
    if getattr(head, "bias", None) is not None:
        tables["output_bias"] = head.bias
    return tables


def rows_here(table: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a table that this process holds (all of it, unless it is sharded), sharing its memory; and those of
    the rows ``ids`` that lie in it, counted from its first."""
    box = local_box(table)
    begin, end = box.offset[0], box.offset[0] + box.shape[0]
    return local_part(table), ids[(ids >= begin) & (ids < end)] - begin


def mean_name(table: str) -> str:
    """Name of a table's mean row in ``new_rows.safetensors``."""
    return f"mean_{table}"


def repaired_name(table: str) -> str:
    """Name of the ids in ``new_rows.safetensors`` whose rows become the mean."""
    return f"repaired_{table}"


@torch.no_grad()
def put_new_rows(model: PreTrainedModel, file: Path) -> None:
    """Grow the tables of ``model`` for the tokens of ``file`` (``new_rows.safetensors``) and fill in their rows.

    All old rows stay as they are, except the repaired ones that the file lists. Raises ``DamageError`` when the file
    belongs to another model.
    """
    stored = read_new_rows(file)
    base_rows = model.get_input_embeddings().weight.shape[0]
    ids = stored["ids"]
    rows = rows_for(base_rows, int(ids.max()) + 1 if len(ids) else 0)
    if rows > base_rows:
        with torch.random.fork_rng(devices=[]):  # every added row is overwritten below
            model.resize_token_embeddings(rows, mean_resizing=False)
    tables = token_tables(model)
    for name, table in tables.items():
        values, mean = stored.get(name), stored.get(mean_name(name))
        if values is None or mean is None or values.shape[1:] != table.shape[1:]:
            raise DamageError(
                f"`{file}` has no rows for the table `{name}` of this model", hint="run `deepen tokenize` again"
            )
        # In this order: the mean for every added row, and over it those that have a token.
        table[base_rows:] = mean.to(table)
        table[stored[repaired_name(name)]] = mean.to(table)
        table[ids] = values.to(table)
    if {"input", "output", "output_bias"} & stored.keys() != tables.keys():
        raise DamageError(f"`{file}` has rows for a head that this model does not have", hint="run `tokenize` again")


def new_row_ids(file: Path) -> Tensor:
    """Ids of the new tokens in ``new_rows.safetensors``: int64[k], ascending."""
    return read_new_rows(file)["ids"]


def read_new_rows(file: Path) -> dict[str, Tensor]:
    """Everything in a ``new_rows.safetensors``; raises ``DamageError`` when it cannot be read."""
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise DamageError(
            f"`{file}` cannot be read: {error}", hint="run `deepen tokenize` again with --redo"
        ) from error
