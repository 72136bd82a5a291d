"""Likelihoods of documents: parity with plain forward passes, windows, what is scored and what is not."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from deepen.evaluate.config import HeldOut
from deepen.evaluate.documents.likelihoods import NOT_FINITE
from deepen.evaluate.documents.material import HeldOutSource, Material
from deepen.evaluate.documents.windows import (
    NOTHING_TO_SCORE,
    Encoded,
    encode,
    encoded,
    likelihoods,
    plain_encoder,
    prepare,
    windows_of,
)
from deepen.formats.documents.documents import Document, write_documents
from deepen.model.config import ResolvedBase
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_model, load_tokenizer

MakeMaterial = Callable[..., Material]
LONG = "the heart pumps blood through the body, and a fever is a high temperature of it. " * 6


def naive_nll(model: LossModel, tokens: list[int], first_scored: int) -> float:
    """One forward pass of the whole document through Hugging Face, log-softmax of all logits."""
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([tokens])).logits[0].double()
    log_probabilities = logits.log_softmax(-1)
    return -sum(float(log_probabilities[place - 1, tokens[place]]) for place in range(first_scored, len(tokens)))


@pytest.mark.parametrize("begin", [0, None])
def test_bits_per_byte_equal_a_separate_forward_per_document(
    model: LossModel, material: MakeMaterial, begin: int | None
) -> None:
    texts = ["a fever is a high temperature", "the cat", "once upon a time there was a little mat"]
    rows = HeldOut().prepare(material(texts, begin))(model, None).to_pylist()
    for row, document in zip(rows, encode(material(texts, begin)).documents, strict=True):
        expected = naive_nll(model, document.tokens.tolist(), document.first_scored)
        per_byte = 1 / (row["bytes"] * math.log(2))
        assert row["nll"] * per_byte == pytest.approx(expected * per_byte, abs=1e-5)


def test_with_a_begin_token_every_byte_is_scored(material: MakeMaterial) -> None:
    text = "naïve 😀 cells"
    document = encode(material([text])).documents[0]
    assert document.num_bytes == len(text.encode())
    assert document.num_scored == len(document.tokens) - 1


@pytest.fixture(scope="module")
def encoder(tokenizer_folder: Path) -> Tokenizer:
    return plain_encoder(tokenizer_folder)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_without_a_begin_token_scored_bytes_are_those_of_the_scored_tokens(encoder: Tokenizer, text: str) -> None:
    document = encoded(text, encoder.encode(text, add_special_tokens=False), None)
    scored = document.tokens[document.first_scored :].tolist()
    decoded = b"".join(bytes_of(encoder.id_to_token(token)) for token in scored)
    assert document.num_bytes == len(decoded)
    assert text.encode().endswith(decoded)


def bytes_of(token: str) -> bytes:
    """Bytes behind a byte-level token, by GPT-2's table of printable stand-ins."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(code): code for code in plain}
    table |= {chr(256 + place): code for place, code in enumerate(code for code in range(256) if code not in plain)}
    return bytes(table[character] for character in token)


def test_special_tokens_in_a_text_are_read_as_text(material: MakeMaterial) -> None:
    document = encode(material(["a <end> b"])).documents[0]
    assert 1 not in document.tokens.tolist()


def test_documents_that_cannot_be_scored_have_a_reason(model: LossModel, material: MakeMaterial) -> None:
    rows = HeldOut().prepare(material(["", "a", "a fever"], None))(model, None).to_pylist()
    assert [row["reason"] for row in rows] == [NOTHING_TO_SCORE, NOTHING_TO_SCORE, None]
    assert [row["nll"] is None for row in rows] == [True, True, False]


@given(st.integers(2, 200), st.integers(2, 40), st.integers(1, 40), st.integers(1, 3))
def test_windows_score_every_target_once_with_enough_context(
    num_tokens: int, context: int, step: int, first_scored: int
) -> None:
    step, first_scored = min(step, context), min(first_scored, num_tokens)
    document = Encoded(np.zeros(num_tokens, np.int32), first_scored, 1)
    scored = []
    for window in windows_of(document, 0, context=context, step=step):
        assert 0 < window.end - window.begin <= context
        for target in range(window.first_target, window.end + 1):
            scored.append(target)
            assert target - window.begin >= min(target, context - step)
    assert scored == list(range(first_scored, num_tokens))


def test_long_documents_are_read_in_overlapping_windows(model: LossModel, material: MakeMaterial) -> None:
    document = encode(material([LONG])).documents[0]
    tokens, expected = torch.from_numpy(document.tokens).long(), 0.0
    for start in range(0, len(tokens) - 1, 8):
        window = tokens[start : start + 17].tolist()
        first = 1 if start == 0 else 9
        if first < len(window):
            expected += naive_nll(model, window, first)
    assert len(tokens) > 64
    assert likelihoods(model, [document], context=16, stride=0.5)[0] == pytest.approx(expected, rel=1e-6)


def test_the_context_never_exceeds_the_models_positions(model: LossModel, material: MakeMaterial) -> None:
    documents = encode(material([LONG])).documents
    wide, exact = (likelihoods(model, documents, context=context, stride=0.5) for context in (4096, 64))
    assert wide == exact


def test_neighbours_do_not_change_a_documents_likelihood(model: LossModel, material: MakeMaterial) -> None:
    documents = encode(material([LONG, "a fever", "the cat sat on the mat"])).documents
    together = likelihoods(model, documents, context=64, stride=0.5)
    alone = [likelihoods(model, [document], context=64, stride=0.5)[0] for document in documents]
    assert together == pytest.approx(alone, rel=1e-6)


def test_the_model_is_left_in_training_mode(model: LossModel, material: MakeMaterial) -> None:
    model.train()
    likelihoods(model, encode(material(["a fever"])).documents, context=64, stride=0.5)
    assert model.training
    model.eval()


def test_a_broken_model_gives_reasons_and_no_numbers(model: LossModel, material: MakeMaterial) -> None:
    broken = LossModel(type(model.model)(model.model.config))
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(float("nan"))
    rows = HeldOut().prepare(material(["a fever"]))(broken, None).to_pylist()
    assert (rows[0]["nll"], rows[0]["reason"]) == (None, NOT_FINITE)


@pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs the real pretrained model")
def test_a_real_model_scores_a_story_as_a_plain_forward_does(tmp_path: Path) -> None:
    folder = Path(os.environ["DEEPEN_TEST_DATA"]) / "model_tinystories_656k"
    real = LossModel(load_model(ResolvedBase("tinystories", folder, None, "x"), vocabulary_size=2048, seed=0)).eval()
    text = "Once upon a time, there was a little girl named Lily. She loved to play in the park."
    path = tmp_path / "stories.parquet"
    write_documents(path, [Document(id="1", text=text, source="stories")], tmp_path)
    row = HeldOut().prepare(Material((HeldOutSource("stories", "watch", path),), folder, 1))(real, None).to_pylist()[0]
    tokens = load_tokenizer(folder)(text).input_ids
    assert row["tokens"] == len(tokens) - 1 and row["bytes"] == len(text)
    assert row["nll"] == pytest.approx(naive_nll(real, tokens, 1), rel=1e-5)
    assert row["nll"] / row["bytes"] / math.log(2) < 1.5


def test_what_a_tokenizer_cannot_spell_counts_eight_bits_a_byte(
    tmp_path: Path, model: LossModel, material: Callable[..., Material], capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = {"<begin>": 0, "<end>": 1, "<unk>": 2} | {letter: 3 + at for at, letter in enumerate("abcdef ")}
    words = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(tmp_path / "letters")
    plain = replace(material(["ab cd", "ab हिcd"]), tokenizer=tmp_path / "letters")
    known, hidden = encode(plain).documents
    assert (known.unknown_bytes, hidden.unknown_bytes) == (0, 6) and "6 of its bytes" in capsys.readouterr().err
    table = prepare(plain, context=64, stride=0.5)(model, None).to_pydict()
    bare = likelihoods(model, [known, hidden], context=64, stride=0.5)
    assert table["nll"] == pytest.approx([bare[0], bare[1] + 48 * math.log(2)])
