"""A larger vocabulary: old ids and old text stay, every new token is reached, and the folder loads everywhere."""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gigatoken
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from deepen.errors import DeepenError
from deepen.formats.tokens.extension import read_extension
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.new_token_counts import read_new_token_counts
from deepen.model.config import RandomInit, ResolvedBase
from deepen.model.weights.load import load_model
from deepen.tokenize.config import ExtendVocabulary, TokenizeConfig
from deepen.tokenize.stage import tokenize
from deepen.tokenize.vocabulary.base_model import BaseModel
from deepen.tokenize.vocabulary.extend import changes, extended, extension_of, prove_grown, write_grown
from deepen.tokenize.vocabulary.given_words import grow_by_words, read_words
from deepen.tokenize.vocabulary.growth import Growth, grow
from tests.tokenize.conftest import NOTES, PAPERS

BASES = ["byte_level", "sentencepiece_like"]
HINDI = ["नदी सुबह से बढ़ रही थी और दोपहर तक सड़क पानी में थी।", "लोग नदी की ओर देख रहे थे और बात कर रहे थे।"] * 3
CHINESE = ["心脏把血液送到全身。心脏从不休息。", "血液把氧气送到大脑。"] * 3
SOURCES = {"hindi": ("domain", [HINDI]), "notes": ("replay", [NOTES])}
REAL = ["gpt2", "qwen2", "llama2", "llama3", "mistral_v1"]


def model_of(base: ResolvedBase) -> BaseModel:
    return BaseModel.read(base.path / "tokenizer.json")


def grown_by(base: BaseModel, texts: list[str], most: int) -> tuple[BaseModel, Growth]:
    growth = grow(base, base.count_words(texts), most)
    return extended(base, growth), growth


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("texts", [HINDI, CHINESE])
def test_every_new_token_is_reached_and_reads_back(name: str, texts: list[str], request) -> None:
    base = model_of(request.getfixturevalue(name))
    grown, growth = grown_by(base, texts, 30)
    prove_grown(base, grown, growth.tokens)
    assert [grown.vocabulary[token] for token in growth.tokens] == list(range(base.size, base.size + 30))
    for text in [*texts, *PAPERS]:
        assert grown.tokenizer.decode(grown.tokenizer.encode(text).ids) == base.tokenizer.decode(
            base.tokenizer.encode(text).ids
        )


@pytest.mark.parametrize("name", BASES)
def test_what_is_saved_is_what_the_learner_says(name: str, request) -> None:
    base = model_of(request.getfixturevalue(name))
    grown, growth = grown_by(base, HINDI, 60)
    found = changes(base, grown, HINDI)
    assert found.tokens_before == growth.sample_tokens
    assert found.tokens_before - found.tokens_after == growth.saved[-1]
    assert list(growth.saved) == sorted(growth.saved)


@pytest.mark.parametrize("name", BASES)
@given(text=st.text(st.sampled_from("ab the नदी心脏 \n<|/s🙂."), max_size=60))
def test_a_text_changes_only_by_new_tokens(name: str, request, text: str) -> None:
    base = model_of(request.getfixturevalue(name))
    grown, _ = grown_by(base, [*HINDI, *CHINESE], 50)
    changes(base, grown, [text])  # raises for any other change, and where the text reads differently
    assert changes(base, grown, NOTES[:1]).changed == 0


def reference_merges(words: dict[str, int], most: int) -> list[tuple[str, str]]:
    """Plain BPE training, slow and obvious: ties go to the pair whose symbols were made first, left before right."""
    split = {word: list(word) for word in words}
    order = {symbol: at for at, symbol in enumerate(sorted({letter for word in words for letter in word}))}
    merges: list[tuple[str, str]] = []
    while len(order) < most + len({letter for word in words for letter in word}):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in split.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += words[word]
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], order[pair[0]], order[pair[1]]))
        merges.append(best)
        order.setdefault("".join(best), len(order))
        for symbols in split.values():
            at = 0
            while at < len(symbols) - 1:
                if (symbols[at], symbols[at + 1]) == best:
                    symbols[at : at + 2] = ["".join(best)]
                at += 1
    return merges


@given(
    words=st.dictionaries(st.text("abc", min_size=1, max_size=8), st.integers(1, 9), min_size=1, max_size=8),
    most=st.integers(1, 12),
)
def test_merges_are_those_of_plain_training(words: dict[str, int], most: int) -> None:
    settings = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
        "use_regex": True}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []},
    }  # fmt: skip
    base = BaseModel(Tokenizer.from_str(json.dumps(settings)), settings)
    growth = grow(base, Counter(words), most)
    assert list(growth.merges) == list(dict.fromkeys(reference_merges(words, most)))


def test_a_missing_character_is_a_token_before_it_is_merged(sentencepiece_like) -> None:
    base = model_of(sentencepiece_like)
    grown, growth = grown_by(base, CHINESE, 8)
    first = growth.tokens[0]
    assert len(first) == 1 and first not in base.vocabulary
    assert extension_of(base, grown, [first], {}).tokens[0].old_ids == tuple(base.encode_words([first])[0])
    assert not any("<0x" in token for token in growth.tokens)


@pytest.mark.parametrize("name", BASES)
def test_given_words_become_one_token(name: str, request) -> None:
    base = model_of(request.getfixturevalue(name))
    words = ["aspirin", " aspirin", "heart pumps", "e", "", "<|endoftext|>" if name == "byte_level" else "</s>", "心心"]
    growth, refused = grow_by_words(base, words)
    grown = extended(base, growth)
    prove_grown(base, grown, growth.tokens)
    assert all(base.spell(word) in growth.tokens for word in ("aspirin", " aspirin", "心心"))
    assert refused == {
        "empty": 1, "one token already": 1, "spells a special token": 1, "split by the tokenizer before it merges": 1,
    }  # fmt: skip


def test_a_vocabulary_without_bytes_learns_the_characters_that_it_loses(sentencepiece_like) -> None:
    settings = model_of(sentencepiece_like).settings
    kept = [token for token in settings["model"]["vocab"] if not token.startswith("<0x")]
    settings["model"]["vocab"] = {token: number for number, token in enumerate(kept)}
    base = BaseModel(Tokenizer.from_str(json.dumps(settings)), settings)
    grown, growth = grown_by(base, CHINESE, 40)
    assert "心" in growth.tokens and "<unk>" in base.tokenizer.encode("心").tokens
    assert "<unk>" not in grown.tokenizer.encode(CHINESE[0]).tokens
    assert extension_of(base, grown, ["心"], {}).tokens[0].old_ids == ()
    assert changes(base, grown, CHINESE).changed == len(CHINESE)


def test_files_of_words(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text('aspirin\n\n{"piece": "▁heart"}\n{"piece": "心脏"}\r\n')
    assert read_words(file) == ["aspirin", " aspirin", " heart", "心脏"]
    file.write_text('one\n{"token": 3}\n')
    with pytest.raises(DeepenError, match="line 2"):
        read_words(file)


def test_vocabularies_without_merges_are_refused(word_level, tmp_path: Path) -> None:
    with pytest.raises(DeepenError, match="WordLevel vocabulary cannot be extended"):
        model_of(word_level)
    unigram = json.loads((word_level.path / "tokenizer.json").read_text())
    unigram["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    with pytest.raises(DeepenError, match="Unigram vocabulary cannot be extended"):
        BaseModel.read(tmp_path / "tokenizer.json")


@pytest.fixture(scope="session")
def with_weights(sentencepiece_like, tmp_path_factory) -> ResolvedBase:
    """The SentencePiece-like base with a tiny network, whose rows a larger vocabulary needs."""
    init = RandomInit(init="random", hidden_size=16, layers=1, heads=2)
    folder = tmp_path_factory.mktemp("weights")
    load_model(ResolvedBase("r", None, init, "f"), vocabulary_size=380, seed=1).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((sentencepiece_like.path / name).read_bytes())
    return ResolvedBase("tiny", folder, None, "f")


def extend(number: int | str, **settings) -> TokenizeConfig:
    return TokenizeConfig(vocabulary=ExtendVocabulary(extend=number, **settings))


def test_the_stage_writes_a_grown_tokenizer_and_what_is_new(make_job, with_weights) -> None:
    job = make_job("out", **SOURCES)
    manifest = tokenize(extend(30), job, base=with_weights)
    extension = read_extension(job.out)
    assert (manifest.counts["base_vocabulary_size"], manifest.counts["new_tokens"]) == (380, 30)
    assert manifest.counts["vocabulary_size"] == extension.vocabulary_size == 410
    assert manifest.counts["changed_general"] == {"documents": len(NOTES), "changed": 0}
    files = {file.path for file in manifest.files}
    assert {"extension.json", "new_rows.safetensors", "report.json", "new_token_counts.json"} <= files
    counts = read_new_token_counts(job.out)
    assert counts["hindi"].sum() > 0 == counts["notes"].sum()
    tokenizer = AutoTokenizer.from_pretrained(job.out / "tokenizer")
    shard = IndexedDataset.open(job.out / "shards" / "hindi")
    assert [tokenizer.decode(shard[at][1:-1]) for at in range(len(shard))] == HINDI
    assert all(tokenizer.convert_ids_to_tokens(token.id) == token.token for token in extension.tokens)


def test_extending_twice_gives_the_same_bytes(make_job, with_weights) -> None:
    jobs = [make_job(name, **SOURCES) for name in ("one", "two")]
    for job in jobs:
        tokenize(extend(20), job, base=with_weights)
    for name in ("tokenizer/tokenizer.json", "extension.json", "report.json", "new_rows.safetensors"):
        assert (jobs[0].out / name).read_bytes() == (jobs[1].out / name).read_bytes()


def test_auto_follows_the_report(make_job, with_weights) -> None:
    poor, fine = make_job("poor", **SOURCES), make_job("fine", papers=("domain", [["a page about a night"]]))
    counts = tokenize(extend("auto"), poor, base=with_weights).counts
    report = json.loads((poor.out / "report.json").read_text())
    assert report["extend_by"] == counts["new_tokens"] > 0
    assert report["poor_sources"] == ["hindi"]
    good = tokenize(TokenizeConfig(), fine, base=with_weights)
    assert "base_vocabulary_size" not in good.counts and read_extension(fine.out) is None


def test_refused_words_are_said(make_job, with_weights, tmp_path: Path, capsys) -> None:
    (tmp_path / "words").write_text("aspirin\nheart pumps\n")
    job = make_job("out", **SOURCES)
    counts = tokenize(extend(0, words=str(tmp_path / "words")), job, base=with_weights).counts
    assert counts["extension"]["words"]["refused"] == {"split by the tokenizer before it merges": 2}
    assert "of 4 given words 2 are not added" in capsys.readouterr().err


@cache
def corpus(name: str, most_bytes: int) -> list[str]:
    folder, texts, total = Path(os.environ["DEEPEN_TEST_DATA"]) / name, [], 0
    packed = (folder / "corpus.jsonl.zst").open("rb")
    with zstandard.ZstdDecompressor().stream_reader(packed) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8", newline="\n"):
            texts.append(json.loads(line)["text"][:20_000])
            total += len(texts[-1].encode())
            if total > most_bytes:
                break
    packed.close()
    return texts


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_grow(kept: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """Old ids, a megabyte of English, every new token, byte round trip, template, and three ways to load the folder."""
    folder = Path(shutil.copytree(kept(name), tmp_path / "tokenizer"))
    before = AutoTokenizer.from_pretrained(folder)
    base = BaseModel.read(folder / "tokenizer.json")
    hindi, english = corpus("hindi_classics", 400_000), corpus("gov_web_prose", 1_000_000)
    grown, growth = grown_by(base, hindi, 500)
    prove_grown(base, grown, growth.tokens)
    write_grown(folder, grown)
    general = changes(base, grown, english)
    assert general.documents > 50 and general.tokens_before >= general.tokens_after
    loaded = AutoTokenizer.from_pretrained(folder)
    for text in ["<|im_start|>नदी</s> two  spaces\n\n\t心脏 🙂", hindi[0][:500], english[0][:500]]:
        ids = loaded(text, verbose=False).input_ids
        assert ids == grown.tokenizer.encode(text).ids
        assert loaded.decode(ids) == before.decode(before(text, verbose=False).input_ids)
    assert loaded.chat_template == before.chat_template
    assert loaded.special_tokens_map == before.special_tokens_map
    layout = gigatoken.Tokenizer(str(folder / "tokenizer.json")).encode_batch(hindi[:5], parallel=False).layout
    plain = [number for text in hindi[:5] for number in grown.tokenizer.encode(text, add_special_tokens=False).ids]
    assert np.asarray(layout.content.data).tolist() == plain
