"""A model as a Hugging Face folder, and the proof that the folder is the model.

The folder is written aside, loaded again the way its users will load it, and compared logit by logit before any file
takes its place. In the precision of the checkpoint nothing may differ. In a lower precision two things are proven: the
folder equals the rounded model exactly, and rounding moved the logits no further than rounding can.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from deepen.errors import DeepenError
from deepen.formats.tokens.extension import Extension
from deepen.model.config import TOKENIZER_FILES
from deepen.model.weights.load import load_tokenizer

DTYPES = {"trained": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}

_TOKENS_PER_TEXT = 256


@dataclass(frozen=True)
class SpecialIds:
    """Tokens that begin and end a document; ``begin`` is None when none is put in front."""

    begin: int | None
    end: int


@dataclass(frozen=True)
class RoundTrip:
    """What the comparison of a model with its reloaded folder found."""

    difference: float
    """Largest absolute difference of logits from the model in memory, in float32."""
    compared_tokens: int
    dtype: str


def save_folder(
    model: PreTrainedModel,
    folder: Path,
    *,
    max_shard: str,
    special: SpecialIds,
    base: Path | None,
    extension: Extension | None = None,
) -> None:
    """Write weights, config.json and generation_config.json of ``model`` into ``folder`` in the model's present dtype.

    A base's own generation settings are handed on as they are; otherwise only the special ids are stated, so that
    generation ends where documents end. Rows that grew without getting a token are never generated: ``suppress_tokens``
    lists them, so that the tables can keep the size that they were trained with.
    """
    # Training had no use for a cache; whoever generates has.
    model.config.use_cache = True
    if model.config.eos_token_id is None:
        model.config.eos_token_id, model.config.bos_token_id = special.end, special.begin
    model.generation_config = GenerationConfig(bos_token_id=special.begin, eos_token_id=special.end)
    with _quietly():
        model.save_pretrained(folder, max_shard_size=max_shard)
    hand_on_settings(folder, base, extension, num_rows=len(model.get_input_embeddings().weight))


def hand_on_settings(folder: Path, base: Path | None, extension: Extension | None, *, num_rows: int) -> None:
    """Put the base's own generation settings in place, and what a grown vocabulary adds to them."""
    settings = base / "generation_config.json" if base is not None else None
    if settings is not None and settings.is_file():
        shutil.copyfile(settings, folder / settings.name)
    if extension is not None:
        _suppress(folder / "generation_config.json", extension, num_rows=num_rows)


def _suppress(file: Path, extension: Extension, *, num_rows: int) -> None:
    """State in the generation settings that rows beyond the vocabulary are no tokens."""
    settings = json.loads(file.read_text())
    # Ids beyond the base's vocabulary were padding for the base, and may be tokens now.
    still = [number for number in settings.get("suppress_tokens") or [] if number < extension.base_vocabulary_size]
    settings["suppress_tokens"] = [*still, *range(extension.vocabulary_size, num_rows)] or None
    file.write_text(json.dumps(settings, indent=2) + "\n")


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copy the files of the tokenizer in a folder byte by byte."""
    files = {path for pattern in TOKENIZER_FILES for path in tokenizer.glob(pattern) if path.is_file()}
    for file in sorted(files):
        shutil.copyfile(file, folder / file.name)


def round_trip(
    model: PreTrainedModel,
    tokens: Sequence[Tensor],
    folder: Path,
    *,
    dtype: str,
    save: Callable[[PreTrainedModel], None],
) -> RoundTrip:
    """Write ``model`` (float32) to ``folder`` with ``save``, in ``dtype``, load it again and compare.

    ``tokens`` are the rows (int64[1, T]) whose logits are compared. The model is left rounded to ``dtype``. Raises
    ``DeepenError`` when the folder is not the model.
    """
    trained = logits_of(model, tokens)
    _round(model, DTYPES[dtype])
    rounded = logits_of(model, tokens)
    save(model)
    reloaded = reload(folder, model)
    # First that the files are the rounded model, bit by bit; then what rounding did.
    require_equal(rounded, logits_of(reloaded, tokens), 0.0, "the reloaded folder gives other logits than the model")
    # Products in bfloat16 would add rounding of their own; here that of weights is left.
    in_float32 = logits_of(reloaded.float(), tokens)
    allowance = 0.0 if DTYPES[dtype] == torch.float32 else rounding_allowance(model, trained)
    difference = require_equal(trained, in_float32, allowance, f"rounding to {dtype} changes the logits too much")
    return RoundTrip(difference, sum(row.shape[1] for row in tokens), str(DTYPES[dtype]).removeprefix("torch."))


def _round(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the weights in place. Buffers stay: rotary frequencies are computed, not stored, and always float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def reload(folder: Path, like: PreTrainedModel) -> PreTrainedModel:
    """Load a folder as its users do, on the device and with the attention of ``like``; every weight must be there."""
    with _quietly():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=like.dtype, attn_implementation=like.config._attn_implementation, use_safetensors=True,
            local_files_only=True, trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    wrong = sorted(
        str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[kind]
    )
    if wrong:
        raise DeepenError(
            f"the exported weights do not fit their config.json: {', '.join(wrong[:5])} ({len(wrong)} in all)",
            hint="this architecture cannot be exported as it is; nothing was written",
        )
    reloaded: PreTrainedModel = model.to(next(like.parameters()).device).eval()
    return reloaded


def tokens_of(folder: Path, texts: Sequence[str]) -> list[Tensor]:
    """The first tokens of every text as the tokenizer in ``folder`` gives them: int64[1, at most 256], none empty."""
    tokenizer = load_tokenizer(folder)
    rows = [tokenizer(text, truncation=True, max_length=_TOKENS_PER_TEXT).input_ids for text in texts]
    return [torch.tensor([row]) for row in rows if row]


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: Sequence[Tensor]) -> list[Tensor]:
    """Logits of every row as float32[T, V] on the CPU; the model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    limit = model.config.max_position_embeddings
    return [model(input_ids=row[:, :limit].to(device), use_cache=False).logits[0].float().cpu() for row in tokens]


def require_equal(expected: list[Tensor], found: list[Tensor], allowance: float, message: str) -> float:
    """The largest absolute difference; raises ``DeepenError`` when it is over ``allowance`` or not a number."""
    differences = [float((one - other).abs().max()) for one, other in zip(expected, found, strict=True)]
    largest = max(differences)
    # Written so that NaN fails.
    if any(not difference <= allowance for difference in differences):
        raise DeepenError(
            f"export: {message} (largest difference {largest:.3g}, allowed {allowance:.3g})",
            hint="no manifest was written; do not use this folder, and report the architecture",
        )
    return largest


def rounding_allowance(model: PreTrainedModel, logits: list[Tensor]) -> float:
    """How far logits may move when every weight is rounded to bfloat16.

    Rounding changes each weight by at most 2^-9 of itself, and so the result of one matrix product by about that share
    of its size; a decoder layer chains four products (values, attention output, two of the feed-forward), head and
    embedding add two, and to first order the shares add up: (4 layers + 2) x 2^-9 x the largest logit.
    """
    largest = max(float(row.abs().max()) for row in logits)
    return float((4 * model.config.num_hidden_layers + 2) * 2**-9 * largest)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own progress bars."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
