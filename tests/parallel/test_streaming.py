"""Weights that go from a base's files into shards are those of the base loaded whole; memory stays a share of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from deepen.formats.extension import NEW_ROWS
from deepen.model.config import ResolvedBase
from deepen.model.load import load_model
from deepen.model.loss import LossModel
from deepen.model.pieces import local_box, local_part
from deepen.model.streaming import can_stream, placeholders, sibling, stream_weights
from deepen.model.tensor_files import write_tensors
from deepen.parallel.apply import spread
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import set_up
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
