"""The exported folder is the trained model: reload, tied heads, precision, reruns, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from deepen.errors import DamageError, DeepenError
from deepen.export.chat import generate
from deepen.export.config import ExportConfig
from deepen.export.huggingface import reload, require_equal
from deepen.formats.files.atomic import write_json
from deepen.formats.manifest import Artifact
from deepen.formats.training.scores import BlendPart, Choice
from deepen.model.config import ResolvedBase
from deepen.model.weights.load import load_model, unique_weights
from tests.export.conftest import TEXTS, VOCABULARY_SIZE, Run, init


def logits(model: PreTrainedModel, folder: Path) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_reloaded_folder_gives_the_trained_models_logits(
    make_run: Callable[..., Run], architecture: str, tied: bool
) -> None:
    run = make_run(init(architecture=architecture, tied=tied))
    manifest = run.export()
    reloaded = AutoModelForCausalLM.from_pretrained(run.out)
    assert torch.equal(logits(reloaded, run.out), logits(run.network, run.out))
    assert manifest.counts["largest_logit_difference"] == 0.0
    assert manifest.counts["compared_tokens"] > 10 and manifest.counts["compared_on"] == "held-out documents"


def test_a_tied_head_is_stored_once(make_run: Callable[..., Run]) -> None:
    run = make_run(init(tied=True))
    run.export()
    with safe_open(run.out / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a dict


def test_every_file_is_listed_with_its_sha256(run: Run) -> None:
    manifest = run.export()
    listed = {entry.path: entry.hash for entry in manifest.files}
    on_disk = {file.name for file in run.out.iterdir()} - {"manifest.json"}
    assert set(listed) == on_disk
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= on_disk
    for name, expected in listed.items():
        assert expected == "sha256:" + hashlib.sha256((run.out / name).read_bytes()).hexdigest()


def test_the_same_model_is_taken_over_unless_a_file_is_damaged(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Artifact(run.out, run.export())
    counts = run.export(out=tmp_path / "again", previous=before).counts
    weights = run.out / "model.safetensors"
    assert "only its card is written anew" in capsys.readouterr().err
    assert counts == before.counts and (tmp_path / "again" / "model.safetensors").samefile(weights)
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    run.export(out=tmp_path / "third", previous=before)
    assert "written anew" not in capsys.readouterr().err
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == data


def test_a_rerun_after_a_kill_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    run.export()
    before = {file.name: file.read_bytes() for file in run.out.iterdir() if file.name != "manifest.json"}
    again = tmp_path / "again"
    (again / "huggingface.tmp").mkdir(parents=True)
    (again / "huggingface.tmp" / "left-over.safetensors").write_bytes(b"half")
    (again / "model.safetensors").write_bytes(b"stale")
    run.export(out=again)
    assert {file.name: file.read_bytes() for file in again.iterdir() if file.name != "manifest.json"} == before


def test_bfloat16_is_the_rounded_model(run: Run) -> None:
    manifest = run.export(ExportConfig(dtype="bfloat16"))
    stored = load_file(run.out / "model.safetensors")
    for name, tensor in run.network.state_dict().items():
        if name in stored:
            assert torch.equal(stored[name], tensor.to(torch.bfloat16))
    assert 0 < manifest.counts["largest_logit_difference"] < 0.1
    assert manifest.counts["dtype"] == "bfloat16"
    assert json.loads((run.out / "config.json").read_text())["dtype"] == "bfloat16"


def test_generation_ends_where_documents_end(run: Run) -> None:
    run.export()
    settings = json.loads((run.out / "generation_config.json").read_text())
    config = json.loads((run.out / "config.json").read_text())
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (0, 1)
    assert (config["bos_token_id"], config["eos_token_id"], config["use_cache"]) == (0, 1, True)


def test_the_bases_generation_settings_are_handed_on(run: Run, tmp_path: Path) -> None:
    run.export()
    (run.out / "generation_config.json").write_text('{"eos_token_id": [1, 5], "do_sample": false, "temperature": 0.6}')
    run.base = type(run.base)(name="earlier", path=run.out, init=None, fingerprint="x")
    run.export(out=tmp_path / "second")
    assert (tmp_path / "second/generation_config.json").read_bytes() == (
        run.out / "generation_config.json"
    ).read_bytes()


def test_without_a_choice_the_base_itself_is_exported_and_the_card_says_so(run: Run) -> None:
    run.choose(None)
    assert run.export().counts["step"] is None
    reloaded = AutoModelForCausalLM.from_pretrained(run.out)
    assert not torch.equal(logits(reloaded, run.out), logits(run.network, run.out))
    assert "untouched base" in (run.out / "README.md").read_text()


def test_large_models_are_split_and_load(run: Run) -> None:
    from deepen.export.huggingface import SpecialIds, save_folder

    save_folder(run.network, run.out, max_shard="60KB", special=SpecialIds(0, 1), base=None)
    assert len(list(run.out.glob("model-*.safetensors"))) > 1
    assert reload(run.out, run.network).lm_head.weight.shape == (300, 32)


def test_without_held_out_text_arbitrary_tokens_are_compared(run: Run) -> None:
    (run.lineage["curate"].path / "held_out" / "papers.parquet").unlink()
    assert run.export().counts["compared_on"] == "arbitrary tokens"


def test_a_damaged_checkpoint_is_refused_by_name(run: Run) -> None:
    weights = run.lineage["train"].path / "checkpoints" / "step-000010" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DamageError, match=r"step-000010/model\.safetensors"):
        run.export()
    assert not (run.out / "manifest.json").exists()


def test_a_chosen_checkpoint_that_is_gone_is_refused(run: Run) -> None:
    run.choose(20)
    with pytest.raises(DamageError, match="step 20 is gone"):
        run.export()


def test_a_folder_with_a_weight_missing_is_refused(run: Run) -> None:
    run.export()
    weights = load_file(run.out / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, run.out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DeepenError, match=r"model\.norm\.weight"):
        reload(run.out, run.network)


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_logits_that_differ_are_refused(value: float) -> None:
    with pytest.raises(DeepenError, match="other logits"):
        require_equal([torch.zeros(2, 3)], [torch.full((2, 3), value)], 0.1, "other logits")


def test_lineage_is_recorded_without_paths_or_times(run: Run) -> None:
    run.export()
    record = json.loads((run.out / "deepen.json").read_text())
    assert record["stages"]["train"]["fingerprint"] == "train-fingerprint"
    assert record["step"] == 10 and str(run.out.parent) not in json.dumps(record)


def test_artifacts_may_live_in_another_run(run: Run, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "train"
    moved.parent.mkdir()
    run.lineage["train"].path.rename(moved)
    run.lineage["train"] = Artifact(moved, run.lineage["train"].manifest)
    assert run.export().counts["step"] == 10


@pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs the real pretrained model")
def test_a_real_pretrained_model_survives_the_export(run: Run) -> None:
    folder = Path(os.environ["DEEPEN_TEST_DATA"]) / "model_tinystories_656k"
    run.base = ResolvedBase(name="tinystories", path=folder, init=None, fingerprint="x")
    counts = {**run.lineage["tokenize"].counts, "vocabulary_size": 2048}
    shutil.copytree(folder, run.out.parent / "tokenized" / "tokenizer")
    manifest = run.lineage["tokenize"].manifest.model_copy(update={"counts": counts})
    run.lineage["tokenize"] = Artifact(run.out.parent / "tokenized", manifest)
    run.choose(None)
    assert run.export().counts["largest_logit_difference"] == 0.0
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, run.out))
    assert torch.equal(logits(before, folder), logits(after, folder))
    story = "".join(generate(run.out, "Once upon a time", max_new_tokens=30, temperature=0))
    assert story.startswith(",") and " " in story and story.isascii()


def test_a_blend_is_the_weighted_sum_and_the_card_names_it(run: Run) -> None:
    start = load_model(run.base, vocabulary_size=VOCABULARY_SIZE, seed=17)  # what the run began with, by the job's seed
    half = (BlendPart(step=10, weight=0.5), BlendPart(step=None, weight=0.5))
    choice = Choice(step=10, blend=half, rule="best_new_within_budget", reason="Because.", candidates=())
    write_json(run.lineage["select"].path / "choice.json", choice.model_dump(mode="json"))
    run.export()
    exported = unique_weights(AutoModelForCausalLM.from_pretrained(run.out))
    trained, began = unique_weights(run.network), unique_weights(start)
    assert all(torch.allclose(exported[name], (trained[name] + began[name]) / 2, atol=1e-6) for name in exported)
    assert "a blend: 0.5 x step 10 + 0.5 x base" in (run.out / "README.md").read_text()
