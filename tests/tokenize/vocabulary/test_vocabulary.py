"""The sample a vocabulary is learned from, the counts of words, and the proof that a copy is equal."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.errors import DeepenError
from deepen.tokenize.parts import num_words
from deepen.tokenize.vocabulary.tokenizer import keep_tokenizer, sampled, train_tokenizer
from tests.tokenize.conftest import NOTES, PAPERS


def test_a_small_corpus_is_taken_whole() -> None:
    assert list(sampled(PAPERS[:3], sum(map(len, PAPERS[:3])))) == PAPERS[:3]


@pytest.mark.parametrize("texts", [["x" * 100] * 1000, ["some words " * 9_000, "short"]])
def test_a_sample_has_the_size_that_was_asked(texts: list[str]) -> None:
    total = sum(map(len, texts))
    taken = sum(map(len, sampled(texts, total, total // 4)))
    assert 0.6 * total / 4 < taken < 1.4 * total / 4


def test_a_sample_is_spread_over_the_corpus() -> None:
    texts = [f"{number:04d}" for number in range(1000)]
    taken = [int(text) for text in sampled(texts, 4000, 400)]
    assert len(taken) == 100
    assert max(b - a for a, b in zip(taken, taken[1:], strict=False)) <= 11


@given(st.lists(st.text(st.sampled_from("ab é中\t\n\r"), max_size=12), max_size=5), st.integers(0, 2))
def test_words_are_runs_without_ascii_space(texts: list[str], begin: int) -> None:
    array = pa.array(texts, pa.large_string())[begin:]
    assert num_words(array) == sum(len(text.split()) for text in texts[begin:])


def test_learning_is_the_same_with_any_number_of_threads(tmp_path: Path) -> None:
    texts = PAPERS + NOTES * 3
    for workers in (1, 2):
        train_tokenizer(texts, 320, tmp_path / str(workers), workers)
    one, two = ((tmp_path / name / "tokenizer" / "tokenizer.json").read_bytes() for name in ("1", "2"))
    assert one == two
    assert json.loads(one)["model"]["vocab"]["<|endoftext|>"] == 0


def test_a_chat_template_is_kept(tmp_path: Path, byte_level) -> None:
    shutil.copytree(byte_level.path, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    files, _ = keep_tokenizer(tmp_path / "base", tmp_path / "out", NOTES)
    assert "tokenizer/chat_template.jinja" in [entry.path for entry in files]


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match="cannot load a tokenizer"):
        keep_tokenizer(tmp_path, tmp_path / "out", NOTES)
