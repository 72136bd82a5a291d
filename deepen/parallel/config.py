"""Where the model computes: part of the machine file, never of the recipe, and never fingerprinted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deepen.settings import Many, Settings

_Positive = Annotated[int, Field(gt=0)]

_TOKENS_PER_MICRO_BATCH = {"cpu": 4_096, "cuda": 16_384}
"""What ``micro_batch_rows: auto`` aims at: enough work per matrix product, little enough memory for activations."""


class Compute(Settings):
    """Device, threads and micro-batch: they change speed and memory, and results only by rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives; ``auto``: the GPU when there is one."""
    threads: Literal["auto"] | _Positive = "auto"
    """CPU threads of the matrix products; ``auto``: one per core. Bit-equal resume needs the same number."""
    micro_batch_rows: Literal["auto"] | _Positive = "auto"
    """Rows per forward pass; ``auto``: about 4,096 tokens on a CPU, 16,384 on a GPU. Smaller needs less memory."""
    shrink_on_oom: bool = True
    """When memory runs out in a step, do it again with half as many rows at once, and go on so: the same results up to
    rounding. ``false``: stop, saying what takes the memory. One process only."""
    background_saves: bool = True
    """Write checkpoints while training goes on. Takes host memory for a copy of weights and moments (12 bytes per
    parameter); the files are the same in every byte, so it is the machine's matter and not the recipe's."""

    recompute: Literal["none", "selective", "full"] = "none"
    """What decoder layers compute again in the backward pass instead of keeping it: ``full`` keeps each layer's input
    alone (arXiv 1604.06174; about a third more work), ``selective`` the results of matrix products and attention, too
    (after arXiv 2205.05198). The numbers stay the same."""
    compile: Literal["auto"] | bool = "auto"
    """Compile decoder layers and the loss (`torch.compile`; +16 % in torchtitan's tables): the first step is slow, the
    others fast. ``auto``: on a GPU, when a model is not spread over several and a C compiler is there."""
    attention: Literal["auto", "sdpa", "varlen", "flash", "flex"] = "auto"
    """Kernel of attention. ``varlen`` (PyTorch's) and ``flash`` (package flash-attn) are told where documents begin and
    need no mask of tokens x tokens, but bfloat16; ``flex`` compiles a mask of blocks; ``sdpa`` takes any model.
    ``auto``: varlen on a GPU in bfloat16 for families where it was tested, else sdpa."""
    loss_kernel: Literal["auto", "chunked", "liger"] = "auto"
    """What turns chunks of logits into loss and gradients: ``chunked`` is ours, one kernel where layers are compiled;
    ``liger`` is Liger's (arXiv 2410.10989; extra ``gpu``). ``auto``: chunked."""
    deterministic: bool = True
    """Only kernels on a GPU that give the same bits each time: bit-equal resume needs them. ``false`` may be faster."""
    scoring_copies: Literal["auto"] | _Positive = 1
    """Whole copies of a model that `baseline`, `evaluate` and `--watch` score with, each on the next GPU: the same bits
    in less time. ``auto``: one for each GPU that this process sees, and with `--watch`, beside a training, a single
    one. On CPUs more than one brings nothing. 1, our choice: no test has seen several GPUs."""
    prefetch_batches: Annotated[int, Field(ge=0)] = 2
    """Batches that a thread reads ahead while a step runs (our choice: one may be slow); 0: none."""

    @property
    def beside_a_training(self) -> Compute:
        """The same for a process that scores while another one trains: it takes no GPU that it was not told to."""
        return self.model_copy(update={"scoring_copies": 1}) if self.scoring_copies == "auto" else self

    def rows_per_micro_batch(self, *, rows_per_batch: int, sequence_length: int, device: str) -> int:
        """Rows of one forward pass on ``device`` (``cpu`` or ``cuda``), at least 1 and at most the whole batch."""
        rows = self.micro_batch_rows
        if rows == "auto":
            rows = _TOKENS_PER_MICRO_BATCH[device] // sequence_length
        return max(1, min(rows, rows_per_batch))


class Mesh(Settings):
    """How processes share the work: a grid (pipeline, replicate, shard, context, tensor), one device each.

    Parameters, gradients and optimizer state are split over ``shard`` x ``context`` when ``shard`` is above 1, and held
    whole otherwise. The product of all dimensions is the number of processes.
    """

    replicate: _Positive = 1
    """Whole copies of the model, each with rows of its own; with ``shard`` copies of the sharded model (HSDP)."""
    shard: Literal["auto"] | _Positive = "auto"
    """Processes that share one copy, each with rows of its own (FSDP2); ``auto``: what the other keys leave over."""
    context: _Positive = 1
    """Processes that share each row: long sequences. Keys and values are gathered."""
    tensor: _Positive = 1
    """Processes that share each matrix, by the architecture's own plan: within a node only."""
    pipeline: _Positive = 1
    """Processes that share the layers, one after another."""
    reshard: bool = True
    """Give parameters back after a layer's forward pass and gather them again for its backward pass (ZeRO-3,
    FULL_SHARD): less memory, half as much communication again. ``false``: ZeRO-2, SHARD_GRAD_OP."""
    offload: bool = False
    """Keep parameters, gradients and optimizer state in the memory of the host (ZeRO-Offload; Gemini's role)."""
    prefetch: _Positive = 1
    """Layers whose parameters are gathered ahead; 1 is what FSDP2 does by itself."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """In which precision sharded gradients of bf16 training are added up over processes; fp32 as torchtitan does."""
    reduce: Literal["last", "each"] = "last"
    """When gradients are added up over processes: after the ``last`` micro-batch of a step, with whole gradients in
    memory until then, or after ``each``, with only shards of them in memory."""
    timeout_seconds: _Positive = 600
    """How long a process waits for the others before it gives up (PyTorch's default for GPUs)."""


class Launch(Settings):
    """How the processes of a training are started and started again."""

    processes_per_node: Literal["auto"] | _Positive = "auto"
    """Processes on each node; ``auto``: one per GPU in whole groups of the mesh, or without GPUs what the mesh asks
    for."""
    nodes: _Positive = 1
    """Nodes that `deepen launch` asks for."""
    min_nodes: _Positive | None = None
    """Nodes with which training goes on when others are lost; default: all. Needs a mesh with `shard: auto`."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often all processes are started again, from the newest checkpoint, when one dies (torchrun's default is 0;
    torch elastic's own is 3)."""
    port: Annotated[int, Field(gt=0, lt=65536)] = 29_400
    """Port on the first host where the nodes meet (torchrun's default)."""
    setup: Many[str] = ()
    """Shell lines that run on each node before training: `module load ...`, `source .venv/bin/activate`."""
    slurm: Many[str] = ()
    """Further lines for the head of the Slurm script: `--partition=gpu`, `--time=24:00:00`."""
