"""Checkpoints of one layout go on in another: the next steps are those of the run that was left."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from deepen.formats.training.checkpoints import LAYOUT, OPTIMIZER, WEIGHTS, drop_optimizer, list_checkpoints, verify
from deepen.model.weights.load import load_weights
from deepen.model.weights.pieces import Box, StoredTensors
from deepen.parallel.config import Compute, Mesh
from deepen.parallel.process import set_up
from deepen.train.checkpoints.files import Keeping, Marks, load_checkpoint, snapshot_of
from deepen.train.checkpoints.saving import write_and_prune
from deepen.train.checkpoints.sharded import Shards, owners
from deepen.train.step import Trainee, train_step
from tests.parallel.gang import run_gang
from tests.parallel.networks import batch_of, network, trainee_of

KEEPING = Keeping(newest=3)


def begin(mesh: dict[str, Any] | None, family: str) -> Trainee:
    process = set_up(Compute(device="cpu", threads=1), None if mesh is None else Mesh.model_validate(mesh))
    return trainee_of(network(family), process)


def go_on(trainee: Trainee) -> list[float]:
    """Loss and gradient norm of the third and fourth step."""
    results = [train_step(trainee, batch_of(step), 1e-2) for step in (2, 3)]
    return [number for result in results for number in (result.loss, result.gradient_norm)]


def save(mesh: dict[str, Any] | None, family: str, folder: str) -> list[float]:
    """Two steps, a checkpoint, two more steps."""
    trainee = begin(mesh, family)
    for step in range(2):
        train_step(trainee, batch_of(step), 1e-2)
    state = {"step": 2, "fingerprint": "x"}
    parts = (trainee.model.model, trainee.optimizer, state, Marks())
    where = (Path(folder), KEEPING, Path(folder) / "metrics.jsonl")
    if mesh is None:
        write_and_prune(*where, snapshot_of(*parts))
    else:
        shards = Shards(trainee.process)
        shards.write(*where, shards.snapshot(*parts))
    return go_on(trainee)


def load(mesh: dict[str, Any] | None, family: str, folder: str) -> list[float]:
    """The same two more steps from a checkpoint, whoever wrote it."""
    trainee = begin(mesh, family)
    with torch.no_grad():
        for parameter in trainee.model.model.parameters():
            parameter.zero_()
    (info,) = list_checkpoints(Path(folder))
    state = load_checkpoint(info, trainee.model.model, trainee.optimizer, trainee.process.rank)
    assert state["step"] == 2
    return go_on(trainee)


LAYOUTS: dict[str, tuple[int, dict[str, Any] | None]] = {
    "alone": (1, None),
    "fsdp2": (2, {"shard": 2}),
    "ddp2": (2, {"shard": 1, "replicate": 2}),
    "tp2": (2, {"shard": 1, "tensor": 2}),
    "zero2-2": (2, {"shard": 2, "reshard": False}),
    "pp2": (2, {"shard": 1, "pipeline": 2}),
    "pp2xfsdp2": (4, {"shard": 2, "pipeline": 2}),
    "fsdp3": (3, {"shard": 3}),
    "fsdp4": (4, {"shard": 4}),
    "hsdp2x2": (4, {"replicate": 2, "shard": 2}),
    "tp2xfsdp2": (4, {"shard": 2, "tensor": 2}),
    "cp2xfsdp2": (4, {"shard": 2, "context": 2}),
}
QUICK = (("fsdp2", "alone"), ("alone", "fsdp2"), ("fsdp2", "tp2"), ("ddp2", "fsdp2"))
ALL = (
    *QUICK, ("fsdp4", "fsdp3"), ("fsdp4", "alone"), ("fsdp3", "fsdp4"), ("hsdp2x2", "fsdp2"), ("tp2xfsdp2", "fsdp3"),
    ("fsdp4", "tp2xfsdp2"), ("tp2", "fsdp4"), ("cp2xfsdp2", "tp2xfsdp2"), ("zero2-2", "hsdp2x2"),
    ("alone", "tp2xfsdp2"), ("pp2", "alone"), ("alone", "pp2"), ("fsdp4", "pp2xfsdp2"), ("pp2xfsdp2", "tp2"),
)  # fmt: skip


def run_all(function: Any, layouts: set[tuple[str, str, str]], folder: Path) -> dict[tuple[str, str, str], list[Any]]:
    """``function`` in each (layout, family, folder), one gang per world size."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for world_size in sorted({LAYOUTS[name][0] for name, _, _ in layouts}):
        cells = {
            repr(cell): (function, (LAYOUTS[cell[0]][1], *cell[1:]))
            for cell in sorted(layouts)
            if LAYOUTS[cell[0]][0] == world_size
        }
        if world_size == 1:
            results = {name: [work(*arguments)] for name, (work, arguments) in cells.items()}
        else:
            results = run_gang(world_size, cells, folder)
        found |= {cell: results[repr(cell)] for cell in layouts if repr(cell) in results}
    return found


def check_pairs(pairs: tuple[tuple[str, str], ...], families: tuple[str, ...], folder: Path) -> None:
    def place(family: str, name: str) -> str:
        return str(folder / f"{family}-{name}")

    saved = run_all(save, {(a, family, place(family, a)) for a, _ in pairs for family in families}, folder)
    loaded = run_all(load, {(b, family, place(family, a)) for a, b in pairs for family in families}, folder)
    for family in families:
        for a, b in pairs:
            expected = saved[a, family, place(family, a)][0]
            for found in loaded[b, family, place(family, a)]:
                assert found == pytest.approx(expected, rel=1e-9, abs=0), (family, a, b)


def test_a_checkpoint_goes_on_in_another_layout(tmp_path: Path) -> None:
    check_pairs(QUICK, ("qwen2",), tmp_path)
    (info,) = list_checkpoints(tmp_path / "qwen2-ddp2")
    files = sorted(path.name for path in info.path.iterdir())
    assert [name for name in files if name.startswith("model")] == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    sizes = [(info.path / name).stat().st_size for name in files if name.startswith("optimizer")]
    assert max(sizes) < 1.2 * min(sizes), "whole copies share the work of writing"
    check_damage(tmp_path / "qwen2-fsdp2")


def check_damage(directory: Path) -> None:
    """Any flipped bit is noticed; without the optimizer's files it is a checkpoint of weights."""
    (info,) = list_checkpoints(directory)
    assert verify(info) == []
    names = set(StoredTensors(info.weights).tensors)
    assert names == set(network("qwen2").state_dict()) - {"lm_head.weight"}, "a tied head is stored once"
    whole = network("qwen2", torch.float64)
    load_weights(whole, info.weights)
    drop_optimizer(info)
    assert verify(info) == []
    assert not list(info.path.glob("optimizer*"))
    for file in sorted(info.path.glob("model-*")):
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
        assert verify(info), file
        content[-3] ^= 1
        file.write_bytes(content)
    (info.path / LAYOUT).unlink()
    assert verify(info)


@pytest.mark.slow
def test_every_pair_of_layouts(tmp_path: Path) -> None:
    check_pairs(ALL, ("llama", "qwen2"), tmp_path)


def test_boxes_that_several_hold_are_shared_out() -> None:
    whole = Box((0, 0), (4, 2))
    halves = [Box((0, 0), (2, 2)), Box((2, 0), (2, 2))]
    held = [
        {"a": (whole, (4, 2), 32), "b": (halves[0], (4, 2), 16), "c": (whole, (4, 2), 32)},
        {"a": (whole, (4, 2), 32), "b": (halves[1], (4, 2), 16), "c": (whole, (4, 2), 32)},
    ]
    loads = [0, 0]
    plan = owners(held, loads)
    assert plan["b", halves[0]] == 0 and plan["b", halves[1]] == 1
    assert {plan["a", whole], plan["c", whole]} == {0, 1}
    assert loads == [48, 48]


def test_any_box_is_put_together_from_any_pieces(tmp_path: Path) -> None:
    """Against indexing: a 7 x 5 tensor cut unevenly in both directions."""
    from deepen.formats.files.atomic import write_json
    from deepen.model.weights.pieces import Described, Piece, layout_of
    from deepen.model.weights.tensor_files import write_tensors

    tensor = torch.arange(35.0).view(7, 5)
    rows, columns, pieces = (0, 3, 4, 7), (0, 2, 5), []
    for number, (top, bottom) in enumerate(pairwise(rows)):
        for left, right in pairwise(columns):
            file = f"part-{number}-{left}.safetensors"
            write_tensors(tmp_path / file, {"t": tensor[top:bottom, left:right]})
            pieces.append(Piece(file, Box((top, left), (bottom - top, right - left))))
    layout = {WEIGHTS: layout_of({"t": Described((7, 5), tuple(pieces))}), OPTIMIZER: {}}
    write_json(tmp_path / LAYOUT, {"files": layout})
    with StoredTensors(tmp_path / WEIGHTS) as stored:
        assert torch.equal(stored.read("t"), tensor)
        for top in range(7):
            for bottom in range(top + 1, 8):
                box = Box((top, 1), (bottom - top, 3))
                assert torch.equal(stored.read("t", box), tensor[box.slices])
    with safe_open(tmp_path / pieces[0].file, framework="pt") as opened:
        assert list(opened.keys()) == ["t"]
