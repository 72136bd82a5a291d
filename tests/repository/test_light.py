"""Small commands are quick because they load little: which heavy modules each of them must do without."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "numba", "plotly", "huggingface_hub", "tokenizers", "safetensors", "fsspec", "ray"}
PROGRAM = """
import sys
from deepen.cli import main
sys.argv = ["deepen", *sys.argv[1:]]
try:
    main()
finally:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "some words"}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: small\n"
        "base: {init: random, hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64, max_length: 32}\n"
        f"ingest: {{sources: [{{name: one, role: domain, path: {tmp_path}/text.jsonl}}]}}\n"
        "tokenize: {vocabulary: {train: 300}}\n"
        "mix: {sequence_length: 32}\n"
        "train: {tokens: 1M tokens, batch_tokens: 8192, learning_rate: 1e-3}\n"
    )
    return path


def loaded(*arguments):
    """The top modules in memory after a command that went well."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stderr.splitlines()[-1].split())


def test_help_loads_hardly_anything():
    assert loaded("--help") & (HEAVY | {"pydantic", "numpy", "pyarrow", "ruamel"}) == set()


@pytest.mark.parametrize("command", ["check", "explain", "plan"])
def test_commands_before_a_run_load_nothing_heavy(command, recipe):
    assert loaded(command, "train" if command == "explain" else str(recipe)) & HEAVY == set()


def test_status_loads_nothing_heavy(recipe):
    run = recipe.parent / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.read_text())
    assert loaded("status", str(run)) & (HEAVY | {"pyarrow"}) == set()
