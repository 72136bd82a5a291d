"""Weights that go from a base's files into shards are those of the base loaded whole; memory stays a share of it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from deepen.formats.manifest import StageJob
from deepen.formats.tokens.extension import NEW_ROWS
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel, check_loss
from deepen.model.weights.load import load_model
from deepen.model.weights.pieces import local_box, local_part
from deepen.model.weights.streaming import can_stream, placeholders, sibling, stream_weights
from deepen.model.weights.tensor_files import write_tensors
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import set_up
from deepen.parallel.spread import spread
from deepen.train.starting.streamed_model import checked_in_place_of, fill_in
from tests.parallel.gang import run_gang
from tests.parallel.networks import VOCABULARY, batch_of, network

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text")
LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp2": {"shard": 2}, "tp2": {"shard": 1, "tensor": 2}, "offload": {"shard": 2, "offload": True},
}  # fmt: skip


def write_base(folder: Path, family: str) -> ResolvedBase:
    network(family, torch.float32).save_pretrained(folder, max_shard_size="30KB")
    return ResolvedBase(family, folder, None, family)


def write_rows(folder: Path, base: ResolvedBase) -> None:
    """Rows for five new tokens (ids above the base's), with one old row that is repaired."""
    assert base.path is not None
    model = load_model(base, vocabulary_size=VOCABULARY, seed=0)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    generator, tensors = torch.Generator().manual_seed(3), {"ids": torch.arange(VOCABULARY, VOCABULARY + 5)}
    for name in ("input",) if tied else ("input", "output"):
        tensors[name] = torch.randn(5, 32, generator=generator)
        tensors[f"mean_{name}"] = torch.randn(32, generator=generator)
        tensors[f"repaired_{name}"] = torch.tensor([2, 50])
    folder.mkdir(exist_ok=True)
    write_tensors(folder / NEW_ROWS, tensors)


def private_bytes() -> int:
    """Memory of this process that it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def load_measured(folder: str) -> tuple[int, int, int]:
    """Bytes of private memory at the most, of this process's share, and of one layer, while 1B weights are loaded."""
    process = set_up(Compute(device="cpu", threads=1), Mesh.model_validate({"shard": 4}))
    base = ResolvedBase("1b", Path(folder), None, "1b")
    job = StageJob(Path(folder), "x", {"tokenize": tokenized(Path(folder))})
    before, peak, done = private_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = placeholders(base, job.inputs["tokenize"])
    loss_model = LossModel(model)
    checked = checked_in_place_of(loss_model, base, Compute(device="cpu", threads=1), process)
    check_loss(checked)
    del checked
    loss_model = spread(loss_model, process)
    fill_in(loss_model, job, base, process, resumes=False)
    share = sum(local_part(parameter).numel() * 4 for parameter in model.parameters())
    layer = sum(parameter.numel() * 4 for parameter in model.model.layers[0].parameters())
    done.set()
    watcher.join()
    return max(peak, private_bytes()) - before, share, layer


@pytest.mark.slow
def test_no_process_holds_more_than_its_share_of_1b_weights(tmp_path: Path) -> None:
    """The shape of Llama 3.2 1B; private memory beyond what it was after imports."""
    config = AutoConfig.for_model(
        "llama", vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = {name: torch.full(tensor.shape, 0.01, dtype=torch.bfloat16) for name, tensor in model.named_parameters()}
    assert sum(tensor.numel() for tensor in weights.values()) > 1.2e9
    write_tensors(tmp_path / "model.safetensors", weights)
    del weights
    config.save_pretrained(tmp_path)
    results = run_gang(4, {"load": (load_measured, (str(tmp_path),))}, tmp_path)["load"]
    for found, share, layer in results:
        print(f"{found / 1e6:.0f} MB of private memory, share {share / 1e6:.0f} MB, layer {layer / 1e6:.0f} MB")
        assert found <= 1.35 * share + layer


def tokenized(folder: Path) -> Any:
    return SimpleNamespace(path=folder)


def stream(mesh: dict[str, Any] | None, family: str, folder: str, rows: str) -> bool:
    """Whether a streamed model has, in every process, exactly what the one loaded whole has there."""
    process = set_up(Compute(device="cpu", threads=1), None if mesh is None else Mesh.model_validate(mesh))
    base, tokenize = ResolvedBase(family, Path(folder), None, family), tokenized(Path(rows))
    assert can_stream(base, tokenize)
    model = placeholders(base, tokenize)
    loss_model = spread(LossModel(model), process)
    stream_weights(model, base, tokenize, lambda: loss_model.to_empty(device="cpu"))
    file = Path(rows) / NEW_ROWS
    size = VOCABULARY + (5 if file.is_file() else 0)
    whole = load_model(base, vocabulary_size=size, seed=0, new_rows=file if file.is_file() else None)
    names = [name for name, _ in whole.named_parameters()]
    assert names == [name for name, _ in model.named_parameters()], "a tied head stays tied"
    if mesh is not None:
        assert any(isinstance(parameter, DTensor) for parameter in model.parameters())
    parameters = dict(model.named_parameters())
    for name, expected in whole.named_parameters():
        found = parameters[name]
        assert torch.equal(local_part(found), expected.detach()[local_box(found).slices]), name
    for (name, expected), found in zip(whole.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(found, expected), name
    batch = batch_of(0)
    inputs = [torch.from_numpy(values) for values in (batch.tokens_BT, batch.labels_BT, batch.positions_BT)]
    loss_model.eval()
    nll = LossModel(whole.eval()).token_nll(*inputs)
    return torch.allclose(loss_model.token_nll(*inputs), nll, rtol=1e-5, atol=1e-5)


def test_streamed_into_shards_a_base_is_what_it_is_whole(tmp_path: Path) -> None:
    cells = {}
    for family in FAMILIES:
        base = write_base(tmp_path / family, family)
        for grown in (False, True):
            rows = tmp_path / f"rows-{family}-{grown}"
            if grown:
                write_rows(rows, base)
            for name, mesh in LAYOUTS.items():
                if name == "fsdp2" or (family in {"llama", "qwen2"} and grown):
                    cells[f"{family} {name} {grown}"] = (stream, (mesh, family, str(base.path), str(rows)))
    for name, results in run_gang(2, cells, tmp_path).items():
        assert all(results), name


def test_a_base_whose_files_have_other_names_is_not_streamed(tmp_path: Path) -> None:
    base = write_base(tmp_path / "llama", "llama")
    for file in tmp_path.glob("llama/model-*.safetensors"):
        file.unlink()
    (tmp_path / "llama/model.safetensors.index.json").unlink()
    weights = {f"other.{name}": tensor for name, tensor in network("llama").state_dict().items()}
    write_tensors(tmp_path / "llama/model.safetensors", weights)
    assert not can_stream(base, tokenized(tmp_path))
    assert not can_stream(ResolvedBase("random", None, None, "x"), tokenized(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sibling_is_small_and_of_the_same_kind(tmp_path: Path, family: str) -> None:
    small = sibling(write_base(tmp_path, family))
    assert small.config.model_type == family and small.config.num_hidden_layers == 2
    assert small.config.hidden_size == 32
