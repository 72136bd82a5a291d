"""How a model computes on this machine: attention and loss kernels, recomputation, compilation.

Chosen once, when a run is prepared: kernels before the model is checked, so that the checks see them; recomputation and
compilation after everything that changes the layers (adapters, for one), before they are sharded.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from deepen.errors import DeepenError
from deepen.model.compute.boundaries import use_attention
from deepen.model.compute.compiled import compile_layers
from deepen.model.compute.precision import allow_tf32
from deepen.model.compute.recompute import add_recompute
from deepen.model.loss.chunked import LossSettings
from deepen.model.loss.kernels import chunk_gradient
from deepen.model.loss.model import LossModel
from deepen.parallel.config import Compute
from deepen.parallel.process import Process
from deepen.progress import say


def choose_kernels(loss_model: LossModel, compute: Compute, process: Process, precision: str) -> None:
    """Attention, loss and TensorFloat-32 as machine file and precision say; raises ``DeepenError`` for what is not to
    be had here."""
    attention = compute.attention
    if process.mesh is not None and max(process.mesh.sizes.context, process.mesh.sizes.pipeline) > 1:
        if attention not in ("auto", "sdpa"):
            raise DeepenError(
                f"`compute.attention: {attention}` does not go with `mesh.context` or `mesh.pipeline`",
                hint="these have an attention of their own: set `compute.attention: auto`",
            )
        attention = "sdpa"
    half = precision in ("bf16", "pure_bf16")
    loss_model.takes_boundaries = use_attention(loss_model.model, attention, process.device, half=half)
    gradient = chunk_gradient(compute.loss_kernel, compiles=compiles(compute, process))
    loss_model.loss = LossSettings(loss_model.loss.rules, gradient)
    if precision == "tf32" and process.device.type == "cpu":
        say("train: a CPU has no TensorFloat-32: tf32 computes in fp32")
    allow_tf32(precision == "tf32")


def prepare_layers(loss_model: LossModel, compute: Compute, process: Process) -> None:
    """Recomputation, then compilation of what results."""
    add_recompute(loss_model.model, compute.recompute)
    if compiles(compute, process):
        compile_layers(loss_model.model)


def compiles(compute: Compute, process: Process) -> bool:
    """Whether layers are compiled: what ``auto`` means here. Raises ``DeepenError`` when asked for and not possible."""
    missing = _what_compiling_lacks(process.device)
    if compute.compile == "auto":
        if missing and process.device.type == "cuda":
            say(f"train: layers are not compiled, {missing} is missing (`compute.compile: false` says so on purpose)")
        return process.device.type == "cuda" and process.mesh is None and not missing
    if compute.compile and missing:
        raise DeepenError(f"`compute.compile` needs {missing}", hint="install it, or set `compute.compile: false`")
    return compute.compile


def _what_compiling_lacks(device: torch.device) -> str | None:
    """What PyTorch's compiler needs and this machine does not have."""
    compilers = [os.environ.get("CC" if device.type == "cuda" else "CXX"), "cc", "gcc", "clang"]
    if device.type == "cpu":
        compilers = [compilers[0], "g++", "clang++"]
    if not any(name and shutil.which(name) for name in compilers):
        return "a C compiler" if device.type == "cuda" else "a C++ compiler"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton"
    return None
