from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from deepen.formats.architecture import architecture_from_config
from deepen.model.config import BaseRun, BaseSetting, RandomInit, ResolvedBase
from deepen.model.weights.load import load_model

BASE = TypeAdapter[Any](BaseSetting)
SMALL = {"init": "random", "hidden_size": 64, "layers": 2, "heads": 4}


def test_a_base_is_a_name_a_run_or_a_random_network() -> None:
    assert BASE.validate_python("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert BASE.validate_python({"run": "runs/earlier"}) == BaseRun(run="runs/earlier")
    assert BASE.validate_python(SMALL | {"max_length": "1k tokens"}) == RandomInit(**SMALL, max_length=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "multiple of heads"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"architecture": "gpt2", "kv_heads": 2}, "gpt2 has no grouped-query"),
        ({"architecture": "lama"}, "llama"),
        ({"layers": 0}, "greater than 0"),
        ({"hiden": 1}, "Extra inputs"),
    ],
)
def test_impossible_networks_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BASE.validate_python(SMALL | change)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_planned_parameters_are_the_models(architecture: str, tied: bool) -> None:
    if architecture == "gpt2" and not tied:
        pytest.skip("published GPT-2 models are tied, and the planner assumes it")
    init = RandomInit(**SMALL, architecture=architecture, tied=tied)
    planned = architecture_from_config(init.config_json(300)).num_parameters
    model = load_model(ResolvedBase("r", None, init, ""), vocabulary_size=300, seed=0)
    assert model.num_parameters() == planned


def test_settings_and_stage_import_without_torch() -> None:
    rooms = "deepen.model.config, deepen.parallel.config, deepen.train.config, deepen.train.stage"
    code = f"import sys, {rooms}, deepen.formats.training.checkpoints, deepen.train.batches.read\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
