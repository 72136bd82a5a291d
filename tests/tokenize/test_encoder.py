"""Both encoders give the tokenizer's own ids, and cutting long texts changes none."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deepen.errors import DeepenError
from deepen.tokenize import encoder as encoder_module
from deepen.tokenize.encoder import Encoder, choose_boundary, choose_encoder
from deepen.tokenize.parts import CHECK_CHARACTERS, Sampled, first_differing
from deepen.tokenize.pieces import cut
from deepen.tokenize.vocabulary.tokenizer import keep_tokenizer, read_vocabulary
from tests.tokenize.conftest import NOTES, PAPERS, vectors, write_base

BASES = ["byte_level", "sentencepiece_like"]
TEXT = st.text(st.sampled_from("ab Zé中\n\t.,<>|/s🙂"), max_size=60)
FIXED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def open_encoder(base, name: str = "gigatoken", boundary: str = "none") -> Encoder:
    return Encoder(base.path, name=name, control=read_vocabulary(base.path).control, boundary=boundary)


@pytest.mark.parametrize("base", BASES)
@given(texts=st.lists(st.one_of(TEXT, st.sampled_from([*PAPERS, "<s>", "</s> <|endoftext|>"])), min_size=1, max_size=6))
@FIXED
def test_gigatoken_gives_the_ids_of_tokenizers(base: str, request, texts: list[str]) -> None:
    base = request.getfixturevalue(base)
    fast, reference = open_encoder(base), open_encoder(base, "tokenizers")
    for got, expected in zip(fast.encode(texts), reference.encode(texts), strict=True):
        assert np.array_equal(got, expected)


@given(texts=st.lists(st.text(max_size=40), max_size=4))
@FIXED
def test_every_text_can_be_read_back(byte_level, texts: list[str]) -> None:
    tokenizer = Tokenizer.from_file(str(byte_level.path / "tokenizer.json"))
    flat, lengths = open_encoder(byte_level).encode(texts)
    ends = np.cumsum(lengths)
    pieces = [flat[end - n : end].tolist() for end, n in zip(ends, lengths, strict=True)]
    assert [tokenizer.decode(ids, skip_special_tokens=False) for ids in pieces] == texts


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
def test_ordinary_text_has_the_ids_of_the_plain_tokenizer(byte_level, name: str) -> None:
    tokenizer = Tokenizer.from_file(str(byte_level.path / "tokenizer.json"))
    flat, _ = open_encoder(byte_level, name).encode(NOTES)
    assert flat.tolist() == [number for text in NOTES for number in tokenizer.encode(text).ids]


@given(text=TEXT, most=st.integers(1, 20), boundary=st.sampled_from(["word", "line", "none"]))
def test_pieces_join_to_the_text(text: str, most: int, boundary) -> None:
    pieces = list(cut(text, most, boundary))
    assert "".join(piece for _, piece in pieces) == text
    assert len(pieces) == 1 or all(len(piece) >= most for _, piece in pieces[:-1])


def test_cuts_lie_at_words_or_lines() -> None:
    text = "one two\nthree four\n\n five"
    assert [piece for _, piece in cut(text, 1, "word")] == ["one", " two\n", "three", " four\n\n five"]
    assert [piece for _, piece in cut(text, 1, "line")] == ["one two\n", "three four\n\n five"]


@pytest.mark.parametrize("base", BASES)
def test_long_texts_get_the_ids_of_the_whole(base: str, request, monkeypatch) -> None:
    base = request.getfixturevalue(base)
    texts = [" ".join(NOTES * 20), "short", "\n".join(PAPERS[:3] * 9)]
    whole = open_encoder(base).encode(texts)
    monkeypatch.setattr(encoder_module, "LONG_CHARACTERS", 200)
    boundary = choose_boundary(base.path, read_vocabulary(base.path).control, texts, "gigatoken")
    pieces = open_encoder(base, boundary=boundary).encode(texts)
    assert boundary != "none"
    assert all(np.array_equal(*pair) for pair in zip(whole, pieces, strict=True))


def test_a_tokenizer_that_joins_words_is_cut_at_lines_only(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"], show_progress=False)
    texts = ["\n".join(["the night was quiet and the night was long"] * 20)]
    tokenizer.train_from_iterator(texts, trainer)
    base = write_base(tokenizer, tmp_path, eos="</s>")
    assert choose_boundary(base.path, [0], texts, "tokenizers") == "line"


def test_another_tokenizer_is_not_taken_for_this_one(byte_level, other_ids, monkeypatch) -> None:
    monkeypatch.setattr(encoder_module, "_open_gigatoken", lambda folder: other_ids)
    name, reason = choose_encoder(byte_level.path, [0], NOTES)
    assert name == "tokenizers"
    assert "other ids for the text beginning 'Patients" in reason


def test_ids_outside_the_vocabulary_are_refused(word_level, other_ids, monkeypatch) -> None:
    monkeypatch.setattr(encoder_module, "_open_gigatoken", lambda folder: other_ids)
    with pytest.raises(DeepenError, match="not in the vocabulary"):
        open_encoder(word_level).encode(NOTES)


def test_the_spelling_of_a_control_token_is_taken_apart(word_level) -> None:
    assert open_encoder(word_level, "tokenizers").reference_ids("page </s> ends").tolist() == [3, 0, 0, 6]


def test_unknown_text_as_end_of_document_is_refused(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    base = write_base(tokenizer, tmp_path, eos="</s>", unk="</s>")
    with pytest.raises(DeepenError, match="ordinary text into a control token"):
        open_encoder(base, "tokenizers").encode(["a strange word"])


def test_the_file_of_a_tokenizer_wins_over_its_class(tmp_path: Path, sentencepiece_like) -> None:
    """Named as a Llama tokenizer, transformers rebuilds it and would mark the space in front differently."""
    settings = json.loads((sentencepiece_like.path / "tokenizer.json").read_text())
    settings["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    base = write_base(Tokenizer.from_str(json.dumps(settings)), tmp_path, "LlamaTokenizer", bos="<s>", eos="</s>")
    _, remark = keep_tokenizer(base.path, tmp_path / "out", NOTES)
    original = Tokenizer.from_file(str(base.path / "tokenizer.json"))
    kept = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer" / "tokenizer.json"))
    assert "the file is what is kept" in remark
    assert [kept.encode(text).ids for text in NOTES] == [original.encode(text).ids for text in NOTES]
    assert read_vocabulary(tmp_path / "out" / "tokenizer").end_of_document_id == 2


def test_nothing_of_this_machine_is_written(tmp_path: Path, byte_level) -> None:
    keep_tokenizer(byte_level.path, tmp_path, [])
    config = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path"} & set(config)
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("name", ["gpt2", "llama2", "qwen2"])
def test_real_tokenizers(kept: Callable[[str], Path], name: str) -> None:
    folder, texts = kept(name), vectors(name)
    assert len(texts) > 5
    control = read_vocabulary(folder).control
    assert choose_encoder(folder, control, [*texts, *PAPERS]) == ("gigatoken", "")
    assert choose_boundary(folder, control, [" ".join(NOTES * 9), "\n".join(PAPERS * 5)], "gigatoken") == "word"


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.integers(0, 3))
def test_a_column_is_encoded_like_a_list(byte_level, texts: list[str], skipped: int) -> None:
    encoder = Encoder(byte_level.path, name="gigatoken", control=[0], boundary="none")
    texts = [*texts, "<|endoftext|> inside"]
    ids, lengths = encoder.encode_column(pa.array(texts, pa.large_string())[skipped:])
    expected, expected_lengths = encoder.encode(texts[skipped:])
    assert ids.tolist() == expected.tolist() and lengths.tolist() == expected_lengths.tolist()


@pytest.mark.parametrize("boundary", ["word", "none"])
@pytest.mark.parametrize(("at", "is_found"), [(0, True), (-1, False)])
def test_of_a_long_document_the_beginning_is_compared(byte_level, boundary, at: int, is_found: bool) -> None:
    encoder = Encoder(byte_level.path, name="tokenizers", control=[0], boundary=boundary)
    text = "some words of text " * (2 * CHECK_CHARACTERS // 19)
    tokens = encoder.reference_ids(text)
    right, wrong = tokens.copy(), tokens.copy()
    wrong[at] += 1
    assert first_differing(encoder, [Sampled("right", text, right)]) is None
    found = first_differing(encoder, [Sampled("right", text, right), Sampled("wrong", text, wrong)])
    assert found == ("wrong" if is_found or boundary == "none" else None)  # without clean cuts all is compared
