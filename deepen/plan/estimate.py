"""One page before a run: tokens, compute, time, memory, disk and cost, each with how it was worked out.

Sizes come from the base's ``config.json`` and from the source files; the speed of this machine from a half-second
matrix product. Memory and disk follow the arithmetic of ``formats.architecture``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deepen.formats.architecture import ADAMW_BYTES_PER_PARAMETER, Architecture, architecture_from_config
from deepen.formats.tokens.extension import rows_for
from deepen.ingest.config import Source
from deepen.ingest.files import list_files
from deepen.mix.fixed.files import bytes_per_position, fixed_files
from deepen.model.config import BaseRun, RandomInit
from deepen.parallel.peaks import PEAK_BF16
from deepen.plan.trained import Trained, trained_of
from deepen.progress import readable
from deepen.recipe.models import Machine, Recipe
from deepen.settings import BYTES_PER_TOKEN
from deepen.tokenize.config import ExtendVocabulary, TrainVocabulary
from deepen.train.config import num_steps

_SHOWN_GPUS = {"A100": "A100", "H100 / H200": "H100"}
_MODEL_FLOPS_UTILISATION = 0.4
_SHARE_OF_MATMUL = 0.6
"""What a training step reaches of a plain matrix product on a CPU: 0.75 for large models, less for tiny ones."""


@dataclass(frozen=True)
class Line:
    """One estimate: a number, how it is shown and how it was worked out."""

    what: str
    value: float
    shown: str
    how: str


def estimate(recipe: Recipe, machine: Machine) -> list[Line]:
    """The whole page; lines whose base cannot be read without fetching say so."""
    lines = [*_data(recipe)]
    shape = architecture_of(recipe)
    if shape is None:
        return [*lines, Line("model", 0, "unknown", "the base is not on this machine: `deepen fetch` it first")]
    work = trained_of(recipe, shape)
    flops = sum(work.flops_per_token(length) * tokens for length, tokens in _tokens_by_length(recipe))
    lines.append(Line("parameters", shape.num_parameters, readable(shape.num_parameters), _how_large(recipe)))
    how = "tokens x (6 N + 12 layers d T)"
    if work.how:
        lines.append(Line("trained parameters", work.trained, readable(work.trained), work.how))
        how = "tokens x (4 N frozen + 6 N trained + 12 layers d T)"
    lines.append(Line("compute", flops, f"{flops:.2e} FLOP", how))
    return [*lines, *_time(flops, machine), *_memory(work, recipe), *_disk(work, recipe)]


def _tokens_by_length(recipe: Recipe) -> list[tuple[int, float]]:
    """How many tokens are trained in rows of each length, in the order of the run."""
    steps, found, before = num_steps(recipe.train), [], 0
    for phase in recipe.mix.lengths:
        end = steps
        if phase.until is not None:
            end = phase.until.in_steps(total_steps=steps, tokens_per_step=recipe.train.batch_tokens)
        found.append((phase.length, recipe.train.tokens * (end - before) / steps))
        before = end
    return found


def architecture_of(recipe: Recipe) -> Architecture | None:
    """Shape of the model that is trained, or None when the base is a hub model that was not looked at yet.

    A number of new tokens counts; how many ``extend: auto`` will add is not known before the corpus is read.
    """
    base, vocabulary = recipe.base, recipe.tokenize.vocabulary
    if isinstance(base, RandomInit):
        size = vocabulary.train if isinstance(vocabulary, TrainVocabulary) else 0
        return architecture_from_config(base.config_json(size))
    path = _config_file(base)
    if not path.is_file():
        return None
    shape = architecture_from_config(json.loads(path.read_text()))
    if isinstance(vocabulary, ExtendVocabulary) and vocabulary.extend != "auto":
        rows = rows_for(shape.vocabulary_size, shape.vocabulary_size + vocabulary.extend)
        shape = replace(shape, vocabulary_size=rows)
    return shape


def _how_large(recipe: Recipe) -> str:
    vocabulary = recipe.tokenize.vocabulary
    if not isinstance(vocabulary, ExtendVocabulary):
        return "from config.json"
    if vocabulary.extend == "auto":
        return "from config.json; a vocabulary that grows adds rows of the hidden size"
    return f"from config.json, with {vocabulary.extend:,} new tokens"


def _config_file(base: str | BaseRun) -> Path:
    """The base's ``config.json``: in its folder, in the export of its run, or in the hub's cache once fetched."""
    if isinstance(base, BaseRun):
        return Path(base.run) / "export" / "config.json"
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder / "config.json"
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = base.partition("@")
    cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(cached) if isinstance(cached, str) else folder / "config.json"


def _data(recipe: Recipe) -> list[Line]:
    steps = num_steps(recipe.train)
    lines = [Line("training tokens", recipe.train.tokens, readable(recipe.train.tokens), f"{steps} steps")]
    for source in recipe.ingest.sources:
        lines.append(_tokens_in(source))
    for rows in recipe.mix.fixed_rows:
        files = fixed_files(rows.path)
        tokens = sum(file.path.stat().st_size / bytes_per_position(file) for file in files)
        how = "bytes on disk / bytes of an id and its label, padding included; parquet holds more"
        lines.append(Line(f"tokens in {rows.name}", tokens, f"about {readable(tokens)}", how))
    return lines


def _tokens_in(source: Source) -> Line:
    """What the files hold, or the source's limit where that is less, or where the files are not here yet."""
    num_bytes = sum(file.num_bytes for file in list_files(source.path, source.format))
    how = f"{readable(num_bytes)} bytes on disk / {BYTES_PER_TOKEN}; compressed files hold 3-5 times as many"
    tokens, limit = num_bytes / BYTES_PER_TOKEN, source.limit
    if limit is not None and limit.unit != "documents":
        most = limit.value / (BYTES_PER_TOKEN if limit.unit == "bytes" else 1)
        if most < tokens or num_bytes == 0:
            tokens, how = most, f"its limit, {limit}"
    return Line(f"tokens in {source.name}", tokens, f"about {readable(tokens)}", how)


def _time(flops: float, machine: Machine) -> list[Line]:
    speed = matmul_flops_per_second() * _SHARE_OF_MATMUL
    hours = flops / speed / 3600
    how = f"{speed / 1e9:.0f} GFLOP/s: {_SHARE_OF_MATMUL:.0%} of a matrix product measured now"
    lines = [Line("time on this CPU", hours, duration(hours), how), *_cost("this CPU", hours, machine, "cpu")]
    for name, device in _SHOWN_GPUS.items():
        peak = PEAK_BF16[device]
        gpu_hours = flops / (peak * _MODEL_FLOPS_UTILISATION) / 3600
        how = f"{peak / 1e12:.0f} TFLOP/s bf16 at {_MODEL_FLOPS_UTILISATION:.0%} utilisation"
        lines.append(Line(f"time on one {name}", gpu_hours, duration(gpu_hours), how))
        lines += _cost(f"one {name}", gpu_hours, machine, "cuda")
    return lines


def _cost(where: str, hours: float, machine: Machine, device: str) -> list[Line]:
    """The price of so many hours, where the machine file has a price for a machine with such a device."""
    price, kind = machine.price, "cuda" if machine.compute.device == "cuda" else "cpu"
    if price is None or kind != device:
        return []
    cost = hours * price.per_hour
    how = f"{price.per_hour:g} {price.currency} an hour ({price.date})"
    return [Line(f"cost on {where}", cost, f"{cost:,.2f} {price.currency}", how)]


def duration(hours: float) -> str:
    """Hours for people: seconds and minutes where those read better."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"


def _memory(work: Trained, recipe: Recipe) -> list[Line]:
    state = work.state_bytes
    row = work.shape.activation_bytes(recipe.mix.longest)
    frozen = ", 4 a frozen one" if work.how else ""
    near, words = _retention_bytes(work, recipe)
    retention = [Line("memory for retention", near, f"{near / 1e9:.2f} GB", words)] if near else []
    return [
        Line(
            "memory for state",
            state,
            f"{state / 1e9:.2f} GB",
            f"{ADAMW_BYTES_PER_PARAMETER} bytes a trained parameter (fp32 AdamW){frozen}",
        ),
        Line(
            "memory per row",
            row,
            f"{row / 1e9:.3f} GB",
            f"activations of one row of {recipe.mix.longest} tokens, fp32",
        ),
        *retention,
    ]


def _retention_bytes(work: Trained, recipe: Recipe) -> tuple[int, str]:
    """What `train.retention` keeps beside the model, and how that is worked out; fp32 as all of the plan's memory."""
    penalties, found = recipe.train.retention, []
    if penalties.anchors:
        found.append((4 * work.trained, "where trained weights began"))
    if penalties.ewc is not None:
        found.append((4 * work.trained, "their importance"))
    if penalties.kl is not None:
        found.append((4 * work.shape.num_parameters, "a second copy of the base"))
    return sum(size for size, _ in found), ", ".join(f"4 bytes a parameter for {what}" for _, what in found)


def _disk(work: Trained, recipe: Recipe) -> list[Line]:
    checkpoint = work.checkpoint_bytes
    kept = recipe.train.save.keep + 1
    return [
        Line("disk per checkpoint", checkpoint, f"{checkpoint / 1e9:.2f} GB", "trained weights and two moments, fp32"),
        Line(
            "disk for checkpoints",
            kept * checkpoint,
            f"{kept * checkpoint / 1e9:.2f} GB",
            f"{kept} at a time, and scored ones",
        ),
    ]


def matmul_flops_per_second(size: int = 1024, seconds: float = 0.15) -> float:
    """Speed of single-precision matrix products on this machine, over about ``seconds``."""
    left = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    np.matmul(left, left)
    started, num_products = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        np.matmul(left, left)
        num_products += 1
    return 2.0 * size**3 * num_products / (time.perf_counter() - started)
