"""A folder written tensor by tensor from pieces is, byte for byte, the one that is written of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from deepen.errors import DeepenError
from deepen.export.config import ExportConfig
from deepen.formats.files.atomic import entry_of, write_json
from deepen.formats.manifest import MANIFEST
from deepen.formats.training.checkpoints import (
    LAYOUT,
    WEIGHTS,
    CheckpointInfo,
    list_checkpoints,
    read_checkpoint,
    verify,
)
from deepen.model.weights.pieces import Box, Described, Piece, layout_of
from deepen.model.weights.tensor_files import write_tensors
from tests.export.conftest import Run, init


def cut_in_two(info: CheckpointInfo) -> None:
    """Turn a checkpoint of one process into one of two, each with the half of every tensor's rows."""
    described: dict[str, Described] = {}
    parts: list[dict[str, object]] = [{}, {}]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    with safe_open(info.path / WEIGHTS, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118 - no mapping
            tensor = stored.get_tensor(name)
            half = len(tensor) // 2
            pieces = []
            for number, (begin, end) in enumerate(((0, half), (half, len(tensor)))):
                parts[number][name] = tensor[begin:end]
                rest = tuple(tensor.shape[1:])
                pieces.append(Piece(files[number], Box((begin, *(0 for _ in rest)), (end - begin, *rest))))
            described[name] = Described(tuple(tensor.shape), tuple(pieces))
    for file, part in zip(files, parts, strict=True):
        write_tensors(info.path / file, part)  # type: ignore[arg-type]
    (info.path / WEIGHTS).unlink()
    write_json(info.path / LAYOUT, {"files": {WEIGHTS: layout_of(described)}})
    manifest = read_checkpoint(info)
    kept = tuple(entry for entry in manifest.files if entry.path != WEIGHTS)
    new = tuple(entry_of(info.path / name, info.path) for name in (*files, LAYOUT))
    changed = manifest.model_copy(update={"files": (*kept, *new)})
    write_json(info.path / MANIFEST, changed.model_dump(mode="json"))
    assert verify(info) == []


def folder(path: Path) -> dict[str, bytes]:
    """Everything but what says how it was proven."""
    names = {file.name for file in path.iterdir()} - {"manifest.json", "README.md", "deepen.json"}
    return {name: (path / name).read_bytes() for name in names}


@pytest.mark.parametrize("dtype", ["trained", "bfloat16"])
@pytest.mark.parametrize(("tied", "max_shard"), [(True, "5GB"), (False, "1MB")])
def test_byte_for_byte_the_same_as_of_the_whole_model(
    make_run: Callable[..., Run], dtype: str, tied: bool, max_shard: str
) -> None:
    run = make_run(init(tied=tied).model_copy(update={"hidden_size": 128, "intermediate_size": 1024}))
    run.export(ExportConfig(dtype=dtype, max_shard=max_shard))
    whole = folder(run.out)
    assert ("model.safetensors.index.json" in whole) == (max_shard == "1MB")
    for info in list_checkpoints(run.lineage["train"].path / "checkpoints"):
        cut_in_two(info)
    (run.out / MANIFEST).unlink()
    manifest = run.export(ExportConfig(dtype=dtype, max_shard=max_shard, proof="tensors"))
    found = folder(run.out)
    assert sorted(found) == sorted(whole)
    assert [name for name in whole if found[name] != whole[name]] == []
    assert manifest.counts["largest_logit_difference"] is None and manifest.counts["compared_on"] == "tensors"
    assert "logits were not compared" in (run.out / "README.md").read_text()


def test_a_tensor_that_is_written_wrong_is_noticed(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepen.export import streamed

    write = streamed.write_streamed
    monkeypatch.setattr(
        streamed, "write_streamed", lambda path, shapes, read: write(path, shapes, lambda name: read(name) * 1.001)
    )
    with pytest.raises(DeepenError, match="was written differently"):
        make_run(init()).export(ExportConfig(proof="tensors"))
