"""The grid of processes: arithmetic, and what is refused before anything is started, with the nearest that works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deepen.errors import RecipeError
from deepen.model.config import RandomInit
from deepen.parallel.axes.families import CONTEXT, TENSOR
from deepen.parallel.config import Mesh
from deepen.parallel.mesh import Grid, coordinates, grid_of, groups_along, model_problems, num_processes, problems
from deepen.parallel.processes.environment import first_host, read_environment
from deepen.recipe.reading import load
from deepen.train.config import TrainConfig
from deepen.train.starting import mesh_limits as layouts

CONFIG = RandomInit(
    init="random", hidden_size=48, layers=3, heads=6, kv_heads=3, intermediate_size=96, max_length=64
).config_json(100)


def said(found: list[Any]) -> str:
    return "\n".join(map(str, found))


def test_ranks_count_with_tensor_fastest() -> None:
    sizes = grid_of(Mesh(tensor=2, context=2, replicate=2), 16)
    assert sizes == Grid(1, 2, 2, 2, 2)
    assert [coordinates(sizes, rank).tensor for rank in range(4)] == [0, 1, 0, 1]
    assert coordinates(sizes, 13) == Grid(0, 1, 1, 0, 1)
    assert groups_along(sizes, "tensor")[:2] == [[0, 1], [2, 3]]
    assert groups_along(sizes, "replicate", "shard")[0] == [0, 4, 8, 12]
    every = [rank for group in groups_along(sizes, "shard", "context") for rank in group]
    assert sorted(every) == list(range(16))


@pytest.mark.parametrize(
    ("mesh", "available", "expected"),
    [({}, 1, 1), ({}, 8, 8), ({"tensor": 2}, 7, 6), ({"tensor": 4}, 1, 4), ({"shard": 2, "replicate": 2}, 8, 4)],
)
def test_an_automatic_shard_takes_all_devices_in_whole_groups(
    mesh: dict[str, int], available: int, expected: int
) -> None:
    assert num_processes(Mesh.model_validate(mesh), available) == expected


@pytest.mark.parametrize(
    ("mesh", "world_size", "words"),
    [
        ({"shard": 4}, 6, "needs 4 processes, there are 6.*mesh.shard: 6"),
        ({"tensor": 4}, 6, "multiple of 4 processes, there are 6.*start 4 or 8"),
        ({"tensor": 2, "context": 2}, 3, "start 4,"),
        ({"replicate": 3, "shard": 1}, 2, "needs 3 processes"),
        ({"pipeline": 2, "tensor": 2}, 4, "share neither rows nor matrices"),
    ],
)
def test_a_wrong_number_of_processes_is_refused_with_the_nearest(
    mesh: dict[str, int], world_size: int, words: str
) -> None:
    found = said(problems(Mesh.model_validate(mesh), world_size=world_size))
    assert re.search(words, found, re.DOTALL), found


def test_what_fits_is_not_complained_about() -> None:
    assert problems(Mesh(tensor=3, context=2), world_size=12) == []
    assert model_problems(Mesh(tensor=3, context=2, pipeline=1), CONFIG, [64]) == []


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ({"tensor": 2}, "3 key-value heads.*use 1 or 3"),
        ({"pipeline": 4}, "3 layers.*at most 3"),
        ({"context": 3}, "64 tokens.*use 2 or 4"),
    ],
)
def test_a_mesh_that_the_model_does_not_fit_is_refused_with_the_nearest(mesh: dict[str, int], words: str) -> None:
    found = said(model_problems(Mesh.model_validate(mesh), CONFIG, [64]))
    assert re.search(words, found, re.DOTALL), found


def test_families_without_a_plan_are_refused_but_may_be_sharded() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 9, "n_positions": 8}
    assert "`gpt2` is not among the families" in said(model_problems(Mesh(tensor=2), gpt2, []))
    assert "mesh.context" in said(model_problems(Mesh(context=2), gpt2, []))
    assert model_problems(Mesh(shard=4, replicate=2), gpt2, [8]) == []


def test_the_families_have_plans_that_we_know() -> None:
    from transformers import AutoConfig

    from deepen.parallel.axes.tensor import _PARTIAL, _STYLES

    for family in TENSOR:
        plan = AutoConfig.for_model(family).base_model_tp_plan
        assert set(plan.values()) <= {*_STYLES, _PARTIAL}, family
    assert TENSOR >= {"llama", "qwen2", "qwen3", "mistral"} <= CONTEXT


RECIPE = """
name: tiny
base: {init: random, hidden_size: 48, layers: 3, heads: 6, kv_heads: 3, max_length: 64}
ingest: {sources: [{name: a, role: domain, path: a.jsonl}]}
tokenize: {vocabulary: {train: 300}}
mix: {sequence_length: 64}
train: {tokens: 12800, batch_tokens: 1280, learning_rate: 1e-3, METHOD}
"""


@pytest.mark.parametrize(
    ("mesh", "method", "words"),
    [
        ("tensor: 2", "", "machine.yaml:2: mesh.tensor"),
        ("context: 2", "neftune_alpha: 5", "train.neftune_alpha"),
        ("pipeline: 2", "rate_multiples: {head: 2}", "train.rate_multiples.head"),
        ("pipeline: 2, context: 2", "", "share neither rows"),
    ],
)
def test_recipe_and_machine_are_checked_together(tmp_path: Path, mesh: str, method: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("METHOD", method).replace("path: a", f"path: {tmp_path}/a"))
    (tmp_path / "machine.yaml").write_text(f"name: many\nmesh: {{{mesh}}}\n")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.yaml", tmp_path / "machine.yaml")
    assert words in str(caught.value)


def test_adapters_are_refused_where_matrices_or_layers_are_shared() -> None:
    config = TrainConfig.model_validate(
        {"tokens": 10, "batch_tokens": 10, "learning_rate": 1e-3, "method": {"use": "lora"}}
    )
    for mesh in (Mesh(tensor=2), Mesh(pipeline=2)):
        assert "train.method" in said(layouts.problems(config, mesh))
    assert layouts.problems(config, Mesh(shard=2, replicate=2, context=2)) == []


def test_processes_are_recognised_however_they_were_started() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    found = read_environment(torchrun | {"MASTER_ADDR": "node-1"})
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (3, 8, 1, 2)
    srun = {
        "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "123", "SLURM_STEP_ID": "0",
    }  # fmt: skip
    found = read_environment(srun)
    assert found is not None
    assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (5, 8, 1, 4)
    assert (found.address, found.port) == ("gpu07", 20_123)
    del srun["SLURM_STEP_ID"]  # the script of sbatch itself
    assert read_environment(srun) is None
    assert read_environment({}) is None
    assert [first_host(nodes) for nodes in ("a1,a2", "gpu[07-09,12],cpu1", "n[1,3]x")] == ["a1", "gpu07", "n1x"]
