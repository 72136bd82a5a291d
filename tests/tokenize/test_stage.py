"""The stage: every document once, ended by itself alone, the same bytes however it was made."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deepen.errors import DeepenError, SourceError
from deepen.formats.documents.document_ids import read_document_ids
from deepen.formats.documents.documents import document_id
from deepen.formats.files.atomic import damage
from deepen.formats.manifest import open_artifact
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.tokenize import parts as parts_module
from deepen.tokenize.config import TokenizeConfig, TrainVocabulary
from deepen.tokenize.parts import num_words, slices_of
from deepen.tokenize.stage import tokenize
from tests.tokenize.conftest import NOTES, PAPERS

SOURCES = {"papers": ("domain", [PAPERS[:2], PAPERS[2:]]), "notes": ("replay", [NOTES])}
KEEP = TokenizeConfig()


def files(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def shard(out: Path, source: str = "papers") -> list[list[int]]:
    dataset = IndexedDataset.open(out / "shards" / source)
    return [dataset[k].tolist() for k in range(len(dataset))]


@pytest.mark.parametrize("base", ["byte_level", "sentencepiece_like"])
def test_shards_decode_to_the_documents(make_job, base: str, request) -> None:
    job = make_job("out", **SOURCES)
    tokenize(KEEP, job, base=request.getfixturevalue(base))
    tokenizer = Tokenizer.from_file(str(job.out / "tokenizer" / "tokenizer.json"))
    begin = {"byte_level": 0, "sentencepiece_like": 1}[base]
    assert [tokenizer.decode(ids[begin:-1]) for ids in shard(job.out)] == PAPERS
    assert [tokenizer.decode(ids[begin:-1]) for ids in shard(job.out, "notes")] == NOTES


@pytest.mark.parametrize(
    ("base", "begin", "end"), [("byte_level", None, 0), ("sentencepiece_like", 1, 2), ("word_level", None, 1)]
)
def test_only_the_frame_of_a_document_is_a_control_token(make_job, base: str, begin, end: int, request) -> None:
    job = make_job("out", **SOURCES)
    counts = tokenize(KEEP, job, base=request.getfixturevalue(base)).counts
    assert (counts["begin_of_document_id"], counts["end_of_document_id"]) == (begin, end)
    for ids in shard(job.out):
        assert ids[-1] == end
        assert begin is None or ids[0] == begin
        inside = ids[:-1] if begin is None else ids[1:-1]
        assert not {begin, end} & set(inside)


def test_counts(make_job, byte_level) -> None:
    job = make_job("out", **SOURCES, wiki=("watch", [["never trained"]]))
    counts = tokenize(KEEP, job, base=byte_level).counts
    assert list(counts["sources"]) == ["papers", "notes"]
    papers = counts["sources"]["papers"]
    assert (papers["role"], papers["documents"]) == ("domain", 5)
    assert papers["bytes"] == sum(len(text.encode()) for text in PAPERS)
    assert papers["words"] == sum(len(text.split()) for text in PAPERS)
    assert papers["tokens"] == sum(map(len, shard(job.out)))
    assert counts["vocabulary_size"] == 300
    assert counts["encoder"] == "gigatoken"


def test_sequences_lead_back_to_documents(make_job, byte_level) -> None:
    job = make_job("out", **SOURCES)
    tokenize(KEEP, job, base=byte_level)
    expected = [document_id("papers", where) for where in ("0/0", "0/1", "1/0", "1/1", "1/2")]
    assert list(read_document_ids(job.out / "documents" / "papers.npy")) == expected


def test_any_number_of_workers_gives_the_same_bytes(make_job, byte_level) -> None:
    jobs = [make_job(f"out{workers}", workers=workers, **SOURCES) for workers in (1, 2)]
    for job in jobs:
        tokenize(KEEP, job, base=byte_level)
    assert files(jobs[0].out) == files(jobs[1].out)


def test_the_manifest_lists_every_file_with_its_hash(make_job, byte_level) -> None:
    job = make_job("out", **SOURCES)
    tokenize(KEEP, job, base=byte_level)
    artifact = open_artifact(job.out)
    assert artifact is not None
    assert {entry.path for entry in artifact.manifest.files} == set(files(job.out))
    assert not any(damage(entry, job.out) for entry in artifact.manifest.files)


@pytest.mark.parametrize("name", ["encode_part", "merge_parts"])
def test_a_stop_at_any_step_is_resumed_to_the_same_bytes(make_job, byte_level, monkeypatch, name: str) -> None:
    tokenize(KEEP, make_job("whole", **SOURCES), base=byte_level)
    job = make_job("stopped", **SOURCES)
    with monkeypatch.context() as patch:
        patch.setattr(f"deepen.tokenize.parts.{name}", stop_after_one_part(name))
        with pytest.raises(KeyboardInterrupt):
            tokenize(KEEP, job, base=byte_level)
    (job.out / "shards" / "notes.bin.tmp").write_bytes(b"half")
    tokenize(KEEP, job, base=byte_level)
    assert files(job.out) == files(make_job("whole").out)


def stop_after_one_part(name: str):
    from deepen.tokenize import parts

    original, calls = getattr(parts, name), []

    def function(part):
        calls.append(part)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(part)

    function.__module__, function.__qualname__ = original.__module__, original.__qualname__
    return function


def test_an_unsupported_tokenizer_is_encoded_by_the_reference(make_job, word_level, capsys) -> None:
    assert tokenize(KEEP, make_job("out", **SOURCES), base=word_level).counts["encoder"] == "tokenizers"
    assert "gigatoken does not support this tokenizer" in capsys.readouterr().err


def test_a_sample_that_differs_makes_the_reference_encode_everything(
    make_job, byte_level, other_ids, monkeypatch, capsys
) -> None:
    """gigatoken is given another vocabulary, and the check at the start is made to trust it."""
    tokenize(KEEP, make_job("right", **SOURCES), base=byte_level)
    monkeypatch.setattr("deepen.tokenize.encoder.choose_encoder", lambda *_: ("gigatoken", ""))
    monkeypatch.setattr("deepen.tokenize.encoder._open_gigatoken", lambda folder: other_ids)
    monkeypatch.setattr("deepen.tokenize.parts.CHECK_ONE_IN", 1)
    monkeypatch.setattr("deepen.tokenize.encoder.choose_boundary", lambda *_: "none")
    manifest = tokenize(KEEP, make_job("wrong", **SOURCES), base=byte_level)
    assert manifest.counts["encoder"] == "tokenizers"
    assert "encoding all again" in capsys.readouterr().err
    assert files(make_job("right").out) == files(make_job("wrong").out)


def test_a_learned_vocabulary(make_job, from_scratch) -> None:
    config = TokenizeConfig(vocabulary=TrainVocabulary(train=290))
    for name in ("one", "two"):
        counts = tokenize(config, make_job(name, **SOURCES), base=from_scratch).counts
    assert (counts["vocabulary_size"], counts["end_of_document_id"]) == (290, 0)
    assert files(make_job("one").out) == files(make_job("two").out)
    assert {ids[-1] for ids in shard(make_job("one").out)} == {0}


def test_a_corpus_too_small_for_the_vocabulary_is_told(make_job, from_scratch, capsys) -> None:
    config = TokenizeConfig(vocabulary=TrainVocabulary(train=5000))
    counts = tokenize(config, make_job("out", papers=("domain", [["abc abc"]])), base=from_scratch).counts
    assert counts["vocabulary_size"] < 300
    assert "5000 was asked" in capsys.readouterr().err


def test_an_empty_source_gives_an_empty_shard(make_job, byte_level) -> None:
    job = make_job("out", **SOURCES, none=("domain", []))
    assert tokenize(KEEP, job, base=byte_level).counts["sources"]["none"]["tokens"] == 0
    assert shard(job.out, "none") == []


def test_nothing_to_train_on_is_refused(make_job, byte_level) -> None:
    with pytest.raises(SourceError, match="no domain or replay source has a document"):
        tokenize(KEEP, make_job("out", wiki=("watch", [["text"]])), base=byte_level)


def test_vocabulary_and_base_must_fit(make_job, byte_level, from_scratch) -> None:
    with pytest.raises(DeepenError, match="no tokenizer to keep") as caught:
        tokenize(KEEP, make_job("out", **SOURCES), base=from_scratch)
    assert "train: 4096" in str(caught.value.hint)
    config = TokenizeConfig(vocabulary=TrainVocabulary(train=300))
    with pytest.raises(DeepenError, match="does not fit `byte-level`"):
        tokenize(config, make_job("out", **SOURCES), base=byte_level)


def test_a_tokenizer_that_cannot_end_a_document_is_refused(make_job, byte_level, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(byte_level.path, folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    base = type(byte_level)("no end", folder, None, "f")
    with pytest.raises(DeepenError, match="no end-of-sequence token") as caught:
        tokenize(KEEP, make_job("out", **SOURCES), base=base)
    assert "eos_token" in str(caught.value.hint)


def test_large_vocabularies_are_stored_in_four_bytes(make_job, byte_level, tmp_path: Path) -> None:
    from deepen.tokenize.parts import frame
    from deepen.tokenize.vocabulary.tokenizer import Vocabulary

    small, large = (frame(np.array([5, 6]), np.array([2, 0]), Vocabulary(size, 1, 3))[0] for size in (65_499, 65_500))
    assert (small.dtype, large.dtype) == (np.dtype("<u2"), np.dtype("<i4"))
    assert small.tolist() == large.tolist() == [3, 5, 6, 1, 3, 1]


@given(st.lists(st.text(alphabet="ab \t\n\r\x0b\x0c\x08\x0eé\u00a0", max_size=8), max_size=6), st.integers(0, 3))
def test_words_are_runs_without_ascii_white_space(texts: list[str], skipped: int) -> None:
    array = pa.array(texts, pa.large_string())[skipped:]
    assert num_words(array) == sum(len(text.encode().split()) for text in texts[skipped:])


def test_a_huge_file_is_cut_into_slices_and_gives_the_same_bytes(make_job, byte_level, monkeypatch) -> None:
    texts = [f"number {number} of many" for number in range(2_500)]
    whole, cut = make_job("whole", papers=("domain", [texts])), make_job("cut", papers=("domain", [texts]))
    tokenize(KEEP, whole, base=byte_level)
    (path,) = (cut.inputs["curate"].path / "documents").glob("*.parquet")
    monkeypatch.setattr(parts_module, "SLICE_BYTES", 1)
    assert [each.name for each in slices_of(path)] == ["papers-00000", "papers-00000.1", "papers-00000.2"]
    tokenize(KEEP, cut, base=byte_level)
    assert files(whole.out) == files(cut.out)


def test_a_pad_token_that_is_the_end_token_leaves_every_end_in_place(make_job, byte_level, tmp_path) -> None:
    folder = shutil.copytree(byte_level.path, tmp_path / "padded")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": config["eos_token"]}))
    plain, padded = make_job("plain", **SOURCES), make_job("pads", **SOURCES)
    tokenize(KEEP, plain, base=byte_level)
    counts = tokenize(KEEP, padded, base=replace(byte_level, path=folder)).counts
    assert shard(padded.out) == shard(plain.out)
    assert counts["sources"]["papers"]["targets"] == counts["sources"]["papers"]["tokens"]
