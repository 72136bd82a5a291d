"""Rows for tokens that a base does not have, made from the rows it has. docs/train.md has measurements.

- ``subword_mean``: the mean of the rows of the pieces that the text had before (ChipNeMo, arXiv 2311.00176).
- ``mean``: the mean of all rows. In any context k such rows take at most log(1 + k/n) nats from n old tokens, because
  the exponential of their mean logit is at most the mean of the exponentials (J. Hewitt, "Initializing new word
  embeddings for pretrained language models", 2021).
- ``nearest``: old rows weighted by similarity, as FOCUS does (arXiv 2305.14481: cosine, then sparsemax). FOCUS measures
  it in word vectors trained for the purpose; here it is measured in the base's own embedding, about its mean row, from
  where the mean of the pieces lies, over the 64 nearest. Nothing is downloaded or trained.
- ``random``: normal, with the table's own spread. It takes probability from old tokens and is slow to learn.

Each table (embedding, head) gets rows of its own from the same recipe. Only the tables are read, not the layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from deepen.errors import DeepenError
from deepen.formats.files.atomic import FileEntry
from deepen.formats.tokens.extension import NEW_ROWS, Extension, rows_for
from deepen.model.token_tables import mean_name, repaired_name, token_tables
from deepen.model.weights.load import load_token_tables
from deepen.model.weights.tensor_files import write_tensors

Init = Literal["subword_mean", "mean", "nearest", "random"]

_NEAREST = 64
_ROWS_AT_ONCE = 8192
"""Rows of a table that are in float64 at a time: 268 MB at a width of 4,096."""
_TOKENS_AT_ONCE = 512
_NEAR_ZERO = 0.01
"""A row shorter than this share of the median row counts as never trained (reserved tokens of Llama 3, for example, are
many orders below it). Our choice; `repaired` lists what it found."""


@dataclass(frozen=True)
class Combination:
    """New rows as weighted sums of old rows: entry j adds ``weights[j] x row old_ids[j]`` to new token ``owner[j]``."""

    owner: Tensor
    old_ids: Tensor
    weights: Tensor
    num_tokens: int


def write_new_rows(
    base: Path, out: Path, extension: Extension, *, init: Init = "subword_mean", repair: bool = False, seed: int = 17
) -> tuple[FileEntry, dict[str, Any]]:
    """Write ``new_rows.safetensors`` into ``out`` for the tokens of ``extension``.

    Returns its entry and counts: ``init``, ``rows`` (of each table afterwards), ``padding_rows`` (of them without a
    token), ``without_pieces`` (tokens that got the mean because nothing is known about their pieces) and ``repaired``
    (ids per table). ``repair`` lists rows of near-zero length, which become the mean; ``seed`` is for ``random``.
    """
    model = load_token_tables(base)
    tables = {name: table.detach() for name, table in token_tables(model).items()}
    tensors = new_rows(tables, extension, init=init, repair=repair, seed=seed)
    base_rows = len(tables["input"])
    rows = rows_for(base_rows, extension.vocabulary_size)
    counts = {
        "init": init,
        "rows": rows,
        "padding_rows": rows - extension.vocabulary_size,
        "without_pieces": sum(not token.old_ids for token in extension.tokens),
        "repaired": {name: tensors[repaired_name(name)].tolist() for name in tables},
    }
    return write_tensors(out / NEW_ROWS, tensors), counts


def rows_line(counts: dict[str, Any]) -> str:
    """What ``write_new_rows`` counted, in one line for people."""
    parts = [f"rows of new tokens by {counts['init']}; tables have {counts['rows']:,} rows now"]
    if counts["without_pieces"]:
        parts.append(f"{counts['without_pieces']:,} tokens without known pieces got the mean")
    repaired = {name: len(ids) for name, ids in counts["repaired"].items() if ids}
    parts += [f"{number:,} near-zero rows of the {name} table repaired" for name, number in repaired.items()]
    if counts["init"] == "random":
        parts.append("WARNING: random rows take probability from old tokens and are slow to learn")
    return "; ".join(parts)


def new_rows(
    tables: dict[str, Tensor], extension: Extension, *, init: Init, repair: bool = False, seed: int = 17
) -> dict[str, Tensor]:
    """The tensors of ``new_rows.safetensors``: ``ids`` int64[k], and for every table (see ``token_tables``) its new
    rows [k, ...], its mean row ``mean_TABLE`` and the ids ``repaired_TABLE``; rows are float32."""
    num_old, num_new = extension.base_vocabulary_size, len(extension.tokens)
    if len(tables["input"]) < num_old:
        raise DeepenError(
            f"the base has {len(tables['input']):,} embedding rows, its tokenizer {num_old:,} ids",
            hint="use the tokenizer that the model was trained with",
        )
    flat = {name: table[:num_old].reshape(len(table[:num_old]), -1) for name, table in tables.items()}
    combination = _combination(flat["input"], extension, init)
    generator = torch.Generator().manual_seed(seed)
    tensors = {"ids": torch.tensor([token.id for token in extension.tokens], dtype=torch.int64)}
    for name, table in flat.items():
        mean_D, spread = moments(table)
        if init == "random":
            rows_KD = spread * torch.randn(num_new, table.shape[1], generator=generator, dtype=torch.float64)
        else:
            rows_KD = _combined(table, combination)
            rows_KD[_without_pieces(extension, init)] = mean_D
        tensors[name] = rows_KD.float().reshape(num_new, *tables[name].shape[1:])
        tensors[mean_name(name)] = mean_D.float().reshape(tables[name].shape[1:])
        tensors[repaired_name(name)] = near_zero_rows(table) if repair and name != "output_bias" else _no_ids()
    return tensors


def moments(table_VD: Tensor) -> tuple[Tensor, float]:
    """The mean row, float64[D], and the standard deviation of all entries about their mean."""
    total_D = torch.zeros(table_VD.shape[1], dtype=torch.float64)
    squares = 0.0
    for _, chunk in _chunks(table_VD):
        total_D += chunk.sum(0)
        squares += float(chunk.square().sum())
    entries = table_VD.numel()
    return total_D / len(table_VD), (squares / entries - float(total_D.sum() / entries) ** 2) ** 0.5


def near_zero_rows(table_VD: Tensor) -> Tensor:
    """Ids of rows that are far shorter than the median row: int64[n], ascending."""
    norms_V = torch.cat([chunk.norm(dim=1) for _, chunk in _chunks(table_VD)])
    return torch.nonzero(norms_V < _NEAR_ZERO * norms_V.median()).flatten()


def sparsemax(scores_KN: Tensor) -> Tensor:
    """The point of the simplex nearest to each row of scores, which fall along a row (Martins & Astudillo, 2016)."""
    ranks_N = torch.arange(1, scores_KN.shape[1] + 1, dtype=scores_KN.dtype)
    sums_KN = scores_KN.cumsum(1)
    # How many have weight: the largest k for which 1 + k z_k is above the sum of the first k.
    support_K1 = (1 + ranks_N * scores_KN > sums_KN).sum(1, keepdim=True)
    threshold_K1 = (sums_KN.gather(1, support_K1 - 1) - 1) / support_K1
    return (scores_KN - threshold_K1).clamp(min=0)


def _combination(embedding_VD: Tensor, extension: Extension, init: Init) -> Combination:
    """Which old rows make up each new one; nothing for those that are the mean or random."""
    pieces = [() if init in ("mean", "random") else token.old_ids for token in extension.tokens]
    owner = torch.repeat_interleave(
        torch.arange(len(pieces)), torch.tensor([len(ids) for ids in pieces], dtype=torch.int64)
    )
    old_ids = torch.tensor([number for ids in pieces for number in ids], dtype=torch.int64)
    weights = torch.tensor([1 / len(ids) for ids in pieces for _ in ids], dtype=torch.float64)
    combination = Combination(owner, old_ids, weights, len(pieces))
    return _nearest(embedding_VD, combination) if init == "nearest" else combination


def _nearest(embedding_VD: Tensor, pieces: Combination) -> Combination:
    """The old tokens nearest to the mean of each new token's pieces, weighted by sparsemax of the cosine."""
    mean_D, _ = moments(embedding_VD)
    tokens_K = torch.unique_consecutive(pieces.owner)  # those with pieces
    wanted_KD = torch.nn.functional.normalize(_combined(embedding_VD, pieces)[tokens_K] - mean_D, dim=1)
    untrained = set(near_zero_rows(embedding_VD).tolist())
    best = torch.empty(len(tokens_K), 0, dtype=torch.float64)
    best_ids = torch.empty(len(tokens_K), 0, dtype=torch.int64)
    # The best so far against one chunk of old rows at a time: all similarities together would not fit into memory.
    for begin, chunk in _chunks(embedding_VD):
        cosines = wanted_KD @ torch.nn.functional.normalize(chunk - mean_D, dim=1).T
        # What was never trained points nowhere in particular, and must not be near to anything.
        cosines[:, [number - begin for number in untrained if begin <= number < begin + len(chunk)]] = -1.0
        ids = torch.arange(begin, begin + len(chunk)).expand(len(tokens_K), -1)
        scores, ids = torch.cat([best, cosines], 1), torch.cat([best_ids, ids], 1)
        best, chosen = scores.topk(min(_NEAREST, scores.shape[1]), dim=1)
        best_ids = ids.gather(1, chosen)
    weights_KN = sparsemax(best)
    return Combination(
        tokens_K.repeat_interleave(best.shape[1]), best_ids.flatten(), weights_KN.flatten(), pieces.num_tokens
    )


def _combined(table_VD: Tensor, combination: Combination) -> Tensor:
    """The weighted sums, float64[k, D]; rows of tokens without any entry are zero."""
    rows_KD = torch.zeros(combination.num_tokens, table_VD.shape[1], dtype=torch.float64)
    # Entries come by owner, so those of some new tokens are one slice.
    bounds = torch.searchsorted(combination.owner, torch.arange(0, combination.num_tokens + 1))
    for begin in range(0, combination.num_tokens, _TOKENS_AT_ONCE):
        part = slice(int(bounds[begin]), int(bounds[min(begin + _TOKENS_AT_ONCE, combination.num_tokens)]))
        weighted = table_VD[combination.old_ids[part]].double() * combination.weights[part, None]
        rows_KD.index_add_(0, combination.owner[part], weighted)
    return rows_KD


def _without_pieces(extension: Extension, init: Init) -> Tensor:
    return torch.tensor([init == "mean" or not token.old_ids for token in extension.tokens], dtype=torch.bool)


def _chunks(table_VD: Tensor) -> Iterator[tuple[int, Tensor]]:
    for begin in range(0, len(table_VD), _ROWS_AT_ONCE):
        yield begin, table_VD[begin : begin + _ROWS_AT_ONCE].double()


def _no_ids(ids: Sequence[int] = ()) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)
