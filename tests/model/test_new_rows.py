from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from deepen.errors import DamageError, DeepenError
from deepen.formats.tokens.extension import NEW_ROWS, Extension, NewToken, rows_for
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.new_rows import Init, near_zero_rows, new_rows, rows_line, sparsemax, write_new_rows
from deepen.model.token_tables import token_tables
from deepen.model.weights.load import load_model

OLD = 50
EXTENSION = Extension(
    base_vocabulary_size=OLD,
    vocabulary_size=OLD + 3,
    tokens=(
        NewToken(id=50, token="ab", text="ab", old_ids=(3, 9)),
        NewToken(id=51, token="abb", text="abb", old_ids=(3, 9, 9)),
        NewToken(id=52, token="?", text=None, old_ids=()),
    ),
)


def tables_of(rows: int = OLD, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: scale * torch.randn(rows, 6, generator=generator) for name in ("input", "output")}


def save(folder: Path, *, tied: bool, vocabulary: int = OLD) -> ResolvedBase:
    init = RandomInit(init="random", hidden_size=16, layers=2, heads=2, tied=tied)
    load_model(ResolvedBase("r", None, init, ""), vocabulary_size=vocabulary, seed=3).save_pretrained(folder)
    return ResolvedBase("here", folder, None, "")


def grown(folder: Path, base: ResolvedBase, init: Init = "subword_mean", extension: Extension = EXTENSION):
    assert base.path is not None
    write_new_rows(base.path, folder, extension, init=init)
    size = extension.vocabulary_size
    return load_model(base, vocabulary_size=size, seed=0, new_rows=folder / NEW_ROWS)


def test_a_new_row_is_the_mean_of_its_pieces_in_each_table() -> None:
    tables = tables_of()
    rows = new_rows(tables, EXTENSION, init="subword_mean")
    for name, table in tables.items():
        torch.testing.assert_close(rows[name][0], (table[3] + table[9]) / 2, rtol=0, atol=1e-7)
        torch.testing.assert_close(rows[name][1], (table[3] + 2 * table[9]) / 3, rtol=0, atol=1e-7)
        assert torch.equal(rows[name][2], table.double().mean(0).float()), "nothing is known of its pieces"


def test_the_mean_is_that_of_all_rows_with_a_token_and_of_no_padding() -> None:
    tables = tables_of(rows=64)
    rows = new_rows(tables, EXTENSION, init="mean")
    assert all(torch.equal(row, tables["output"][:OLD].double().mean(0).float()) for row in rows["output"])


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=12))
def test_sparsemax_gives_shares_that_sum_to_one_and_fall(scores: list[float]) -> None:
    weights = sparsemax(torch.tensor([sorted(scores, reverse=True)], dtype=torch.float64))[0]
    assert weights.sum().item() == pytest.approx(1)
    assert (weights >= 0).all() and (weights.diff() <= 1e-12).all()


def test_sparsemax_of_a_known_case() -> None:
    weights = sparsemax(torch.tensor([[0.5, 0.3, -0.6]]))
    torch.testing.assert_close(weights, torch.tensor([[0.6, 0.4, 0.0]]))


def test_nearest_finds_the_rows_that_resemble_the_pieces() -> None:
    tables = tables_of()
    tables["input"][20] = 1.01 * tables["input"][3]
    extension = EXTENSION.model_copy(update={"tokens": (NewToken(id=50, token="a", text="a", old_ids=(3,)),)})
    row = new_rows(tables, extension, init="nearest")["output"][0]
    expected = (tables["output"][3] + tables["output"][20]) / 2
    assert torch.nn.functional.cosine_similarity(row, expected, dim=0) > 0.9


def test_random_rows_have_the_spread_of_their_table_and_depend_on_the_seed() -> None:
    tables = tables_of(scale=0.1)
    tokens = tuple(NewToken(id=OLD + n, token=str(n), text=None, old_ids=()) for n in range(500))
    extension = Extension(base_vocabulary_size=OLD, vocabulary_size=OLD + 500, tokens=tokens)
    rows = new_rows(tables, extension, init="random", seed=1)
    assert rows["input"].std().item() == pytest.approx(tables["input"].std().item(), rel=0.1)
    assert torch.equal(rows["input"], new_rows(tables, extension, init="random", seed=1)["input"])
    assert not torch.equal(rows["input"], new_rows(tables, extension, init="random", seed=2)["input"])


def test_rows_that_were_never_trained_are_listed_and_repaired() -> None:
    tables = tables_of()
    tables["output"][[7, 11]] *= 1e-9
    assert near_zero_rows(tables["output"]).tolist() == [7, 11]
    assert new_rows(tables, EXTENSION, init="mean", repair=True)["repaired_output"].tolist() == [7, 11]
    assert new_rows(tables, EXTENSION, init="mean")["repaired_output"].tolist() == []


@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_model_keeps_its_old_rows_and_is_a_multiple_of_128(tmp_path: Path, tied: bool) -> None:
    base = save(tmp_path / "base", tied=tied)
    old = load_model(base, vocabulary_size=OLD, seed=0)
    model = grown(tmp_path, base)
    assert model.config.vocab_size == 128 and model.training
    for name, table in token_tables(model).items():
        before = token_tables(old)[name]
        assert torch.equal(table[:OLD], before)
        torch.testing.assert_close(table[50], (before[3] + before[9]) / 2, rtol=0, atol=1e-7)
        assert torch.equal(table[53:], before.double().mean(0).float().expand(75, -1)), "padding is the mean row"
    assert ("output" in token_tables(model)) == (not tied)
    body = {name: value for name, value in model.state_dict().items() if "layers" in name or "norm" in name}
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in body.items())


def test_rows_that_a_base_has_to_spare_are_used_and_the_rest_stays(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tied=False, vocabulary=60)
    old, model = load_model(base, vocabulary_size=OLD, seed=0), grown(tmp_path, base)
    assert model.config.vocab_size == 60
    assert torch.equal(token_tables(model)["input"][53:], token_tables(old)["input"][53:])
    assert not torch.equal(token_tables(model)["input"][50], token_tables(old)["input"][50])


def test_the_global_random_state_is_not_touched(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tied=True)
    state = torch.manual_seed(1).get_state()
    grown(tmp_path, base)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tied", [True, False])
def test_mean_rows_take_no_more_than_the_theorem_allows(tmp_path: Path, tied: bool) -> None:
    base = save(tmp_path / "base", tied=tied)
    old, model = load_model(base, vocabulary_size=OLD, seed=0), grown(tmp_path, base, "mean")
    tokens = torch.randint(0, OLD, (4, 20), generator=torch.Generator().manual_seed(0))
    before, after = (one(tokens, labels=tokens).loss.item() for one in (old.double(), model.double()))
    assert 0 < after - before <= math.log(1 + 78 / OLD)


def test_a_bias_of_the_head_grows_with_it(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "phi", vocab_size=OLD, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "base")
    bias = token_tables(grown(tmp_path, ResolvedBase("p", tmp_path / "base", None, "")))["output_bias"]
    torch.testing.assert_close(bias[50], (bias[3] + bias[9]) / 2)
    torch.testing.assert_close(bias[60], bias[:OLD].mean())


FAMILIES = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    **dict.fromkeys(("gemma", "gemma2", "qwen2", "qwen3", "gpt_neox", "mistral"), {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 16,
    }),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_old_tokens_are_those_of_the_base(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model(family, vocab_size=OLD, **FAMILIES[family], **ends)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(tmp_path / "base")
    base = ResolvedBase(family, tmp_path / "base", None, "")
    old, model = load_model(base, vocabulary_size=OLD, seed=0).eval(), grown(tmp_path, base).eval()
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(model(tokens).logits[..., :OLD], old(tokens).logits, rtol=0, atol=1e-6)
    table = token_tables(model)["input"]
    torch.testing.assert_close(table[50], (table[3] + table[9]) / 2, rtol=0, atol=1e-7)


def test_rows_of_another_model_are_refused(tmp_path: Path) -> None:
    grown(tmp_path, save(tmp_path / "tied", tied=True))
    other = save(tmp_path / "untied", tied=False)
    with pytest.raises(DamageError, match="no rows for the table `output`"):
        load_model(other, vocabulary_size=53, seed=0, new_rows=tmp_path / NEW_ROWS)


def test_a_tokenizer_with_more_ids_than_the_base_has_rows_is_refused() -> None:
    with pytest.raises(DeepenError, match="49 embedding rows, its tokenizer 50"):
        new_rows(tables_of(rows=49), EXTENSION, init="mean")


def test_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tied=False)
    assert base.path is not None
    first, counts = write_new_rows(base.path, tmp_path / "a", EXTENSION, init="nearest")
    assert first == write_new_rows(base.path, tmp_path / "b", EXTENSION, init="nearest")[0]
    assert counts | {"repaired": 0} == {
        "init": "nearest", "rows": 128, "padding_rows": 75, "without_pieces": 1, "repaired": 0,
    }  # fmt: skip


def test_what_was_done_is_said_and_random_warned_of(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tied=False)
    with torch.no_grad():
        model = load_model(base, vocabulary_size=OLD, seed=0)
        model.lm_head.weight[5] = 0
    model.save_pretrained(tmp_path / "base")
    assert base.path is not None
    _, counts = write_new_rows(base.path, tmp_path, EXTENSION, init="random", repair=True)
    line = rows_line(counts)
    assert "128 rows now" in line and "1 near-zero rows of the output table" in line and "WARNING" in line


def test_rows_are_added_only_when_there_is_no_room() -> None:
    assert [rows_for(2048, 2048), rows_for(2048, 2049), rows_for(2176, 2100), rows_for(50, 53)] == [
        2048, 2176, 2176, 128,
    ]  # fmt: skip
