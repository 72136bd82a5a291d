from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepen.errors import DamageError, DeepenError
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.weights.load import load_model, load_tokenizer, load_weights, unique_weights

INIT = RandomInit(init="random", hidden_size=16, layers=1, heads=2)
RANDOM = ResolvedBase("random", None, INIT, "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    load_model(RANDOM, vocabulary_size=50, seed=3).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def pretrained(folder: Path) -> ResolvedBase:
    return ResolvedBase("here", folder, None, "")


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = load_model(RANDOM, vocabulary_size=50, seed=3).state_dict()
    state = torch.manual_seed(2).get_state()
    second = load_model(RANDOM, vocabulary_size=50, seed=3).state_dict()
    other = load_model(RANDOM, vocabulary_size=50, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_gives_its_weights_in_train_mode(folder: Path) -> None:
    model = load_model(pretrained(folder), vocabulary_size=50, seed=0)
    expected = load_model(RANDOM, vocabulary_size=50, seed=3).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.training and model.dtype == torch.float32


def test_a_tokenizer_with_more_ids_than_rows_is_refused(folder: Path) -> None:
    with pytest.raises(DeepenError, match="50 embedding rows, its tokenizer 51"):
        load_model(pretrained(folder), vocabulary_size=51, seed=0)


def test_a_missing_weight_is_an_error_and_never_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamageError, match=r"model\.norm\.weight"):
        load_model(pretrained(folder), vocabulary_size=50, seed=0)


def test_a_weight_of_another_shape_is_an_error(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamageError, match=r"model\.norm\.weight"):
        load_model(pretrained(folder), vocabulary_size=50, seed=0)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DeepenError, match="no safetensors"):
        load_model(pretrained(folder), vocabulary_size=50, seed=0)


def test_damaged_safetensors_are_an_error(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(DeepenError, match="cannot load the model"):
        load_model(pretrained(folder), vocabulary_size=50, seed=0)


def test_code_of_a_model_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(DeepenError, match="no model that transformers knows"):
        load_model(pretrained(folder), vocabulary_size=50, seed=0)


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match="cannot load a tokenizer"):
        load_tokenizer(tmp_path)


def test_load_weights_restores_and_names_what_does_not_fit(folder: Path, tmp_path: Path) -> None:
    model = load_model(RANDOM, vocabulary_size=50, seed=8)
    load_weights(model, folder / "model.safetensors")
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in unique_weights(model).items())
    save_file({**stored, "extra": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DamageError, match="extra"):
        load_weights(model, tmp_path / "other.safetensors")


@pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs the test data")
def test_real_models_and_tokenizers_load() -> None:
    data = Path(os.environ.get("DEEPEN_TEST_DATA", ""))
    folder = data / "model_tinystories_656k"
    tokenizer = load_tokenizer(folder)
    model = load_model(pretrained(folder), vocabulary_size=len(tokenizer), seed=0)
    assert (len(tokenizer), model.num_parameters()) == (2048, 656_000)
