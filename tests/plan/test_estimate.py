import json

import pyarrow as pa
import pytest

from deepen.plan.estimate import architecture_of, duration, estimate
from deepen.recipe.models import Machine, Recipe

LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256,
    "tie_word_embeddings": True,
}  # fmt: skip


def recipe(tmp_path, base):
    (tmp_path / "d.txt").write_text("x" * 4000)
    return Recipe.model_validate(
        {
            "name": "n",
            "base": base,
            "ingest": {"sources": [{"name": "d", "role": "domain", "path": str(tmp_path / "d.txt")}]},
            "tokenize": {"vocabulary": {"train": 1000}} if isinstance(base, dict) else {},
            "train": {"tokens": "1B tokens", "batch_tokens": 65536, "learning_rate": 1e-4},
        }
    )


def test_the_page_of_a_model_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    machine = Machine.model_validate({"compute": {"device": "cuda"}, "price": {"per_hour": 3, "date": "2026-05-01"}})
    lines = {line.what: line for line in estimate(recipe(tmp_path, str(tmp_path)), machine)}
    assert lines["parameters"].value == pytest.approx(1.236e9, rel=0.001)
    assert lines["tokens in d"].value == 1000
    assert lines["memory for state"].value == 16 * lines["parameters"].value
    hours = lines["time on one H100 / H200"].value
    assert hours == pytest.approx(lines["compute"].value / (989e12 * 0.4) / 3600)
    assert lines["cost on one H100 / H200"].value == pytest.approx(3 * hours)


def test_fixed_rows_are_estimated_from_their_files(tmp_path):
    table = pa.table({"input_ids": pa.array([[7] * 1000] * 10, pa.list_(pa.int32()))})
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    fixed = {"name": "ready", "role": "replay", "path": str(tmp_path / "rows.arrow"), "tokenizer": "base"}
    settings = recipe(tmp_path, str(tmp_path)).model_dump(mode="json") | {"mix": {"fixed_rows": [fixed]}}
    lines = {line.what: line for line in estimate(Recipe.model_validate(settings), Machine())}
    assert lines["tokens in ready"].value == pytest.approx(10_000, rel=0.05)


def test_a_random_network_takes_its_vocabulary_from_the_recipe(tmp_path):
    base = {"init": "random", "hidden_size": 64, "layers": 2, "heads": 4, "max_length": 2048}
    shape = architecture_of(recipe(tmp_path, base))
    assert shape is not None
    assert shape.vocabulary_size == 1000


def test_new_tokens_add_rows(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    plain = recipe(tmp_path, str(tmp_path))
    vocabulary = {"tokenize": {"vocabulary": {"extend": 1000}}}
    grown = Recipe.model_validate(plain.model_dump(mode="json") | vocabulary)
    sizes = [architecture_of(one).num_parameters for one in (plain, grown)]
    assert sizes[1] - sizes[0] == 2048 * (129_280 - 128_256)


def test_a_base_that_is_not_here_is_said_to_be_unknown(tmp_path):
    lines = {line.what: line for line in estimate(recipe(tmp_path, "nobody/nothing"), Machine())}
    assert "fetch" in lines["model"].how


@pytest.mark.parametrize(("hours", "shown"), [(2.5, "2.5 h"), (0.5, "30.0 min"), (0.001, "3.6 s")])
def test_durations(hours, shown):
    assert duration(hours) == shown


@pytest.mark.parametrize(
    ("path", "limit", "tokens"),
    [("d.txt", "400 bytes", 100), ("d.txt", "2k tokens", 1000), ("hf://a/b", "2k tokens", 2000), ("d.txt", 5, 1000)],
)
def test_a_limited_source_is_no_more_than_its_limit(tmp_path, path, limit, tokens):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    settings = recipe(tmp_path, str(tmp_path)).model_dump(mode="json")
    settings["ingest"]["sources"][0] |= {"limit": limit, "path": path.replace("d.txt", str(tmp_path / "d.txt"))}
    lines = {line.what: line for line in estimate(Recipe.model_validate(settings), Machine())}
    assert lines["tokens in d"].value == tokens


def test_adapters_take_less_of_everything(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    plain = recipe(tmp_path, str(tmp_path))
    settings = plain.model_dump(mode="json")

    def page(method, extend=None):
        train = settings["train"] | {"method": method}
        tokenize = {"vocabulary": {"extend": extend}} if extend else {}
        changed = Recipe.model_validate(settings | {"train": train, "tokenize": tokenize})
        return {line.what: line for line in estimate(changed, Machine())}

    full, lora = page("full"), page({"use": "lora", "rank": 64})
    size = full["parameters"].value
    added = 16 * 64 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert lora["trained parameters"].value == added and "trained parameters" not in full
    assert lora["memory for state"].value == 4 * size + 16 * added
    assert lora["disk per checkpoint"].value == 12 * added
    attention = 12 * 16 * 2048 * 2048
    assert lora["compute"].value == pytest.approx(1e9 * (4 * size + 6 * added + attention), rel=1e-4)
    assert full["compute"].value == pytest.approx(1e9 * (6 * size + attention), rel=1e-4)
    grown = page({"use": "lora", "rank": 64}, extend=1000)
    assert grown["trained parameters"].value == added + 129_280 * 2048
