"""Shards without a recipe: pairs as Megatron writes and joins them, whatever the inputs are."""

import json

import pytest

from deepen.errors import RecipeError, RunError
from deepen.formats.tokens.megatron import IndexedDataset, IndexedDatasetWriter
from deepen.tokenize.vocabulary.tokenizer import train_tokenizer
from deepen.workflow.commands.tokenize_files import TokenizeFiles, report_files, tokenize_files

TEXTS = {
    "zebra.jsonl": ["Stripes all over.", "A second one."],
    "ant.jsonl": ["Six legs 🙂", "नमस्ते", "<|endoftext|> here"],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer([text for texts in TEXTS.values() for text in texts] * 4, 300, folder, workers=1)
    return folder / "tokenizer"


@pytest.fixture
def order(tmp_path, tokenizer):
    for name, texts in TEXTS.items():
        (tmp_path / name).write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    (tmp_path / "note.txt").write_text("plain text")

    def make(out="out", **settings):
        inputs = tuple(str(tmp_path / name) for name in (*TEXTS, "note.txt"))
        return TokenizeFiles(**({"inputs": inputs, "tokenizer": str(tokenizer), "out": tmp_path / out} | settings))

    return make


def documents(prefix):
    dataset = IndexedDataset.open(prefix)
    return [dataset[k].tolist() for k in range(len(dataset))]


def test_the_joined_pair_is_the_merge_of_the_pairs_in_the_order_of_their_names(order, tmp_path):
    tokenize_files(order())
    with IndexedDatasetWriter(tmp_path / "merged", "<u2") as writer:
        for name in ("ant", "note", "zebra"):
            writer.add_dataset(IndexedDataset.open(tmp_path / "out" / name))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / "out" / f"dataset{suffix}").read_bytes() == (tmp_path / f"merged{suffix}").read_bytes()
    assert len(documents(tmp_path / "out" / "dataset")) == 6


def test_ids_are_the_tokenizers_with_its_end_token_after_each_document(order, tmp_path, tokenizer):
    from tokenizers import Tokenizer

    tokenize_files(order())
    plain = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    plain.encode_special_tokens = True
    expected = [plain.encode(text).ids for text in TEXTS["ant.jsonl"]]
    assert documents(tmp_path / "out" / "ant") == [[*ids, 0] for ids in expected]
    tokenize_files(order("bare", append_end=False))
    assert documents(tmp_path / "bare" / "ant") == expected


def test_what_is_made_is_not_made_again_and_other_work_is_refused(order, tmp_path, tokenizer):
    made = tokenize_files(order())
    assert tokenize_files(order()) == made
    with pytest.raises(RunError, match="something else already"):
        tokenize_files(order(append_end=False))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(RunError):
        tokenize_files(order("mine"))


def test_all_missing_inputs_are_named_at_once(order, tmp_path):
    with pytest.raises(RecipeError) as error:
        tokenize_files(order(inputs=("nowhere.jsonl", str(tmp_path / "note.txt"), "gone.parquet")))
    assert [problem.value for problem in error.value.problems] == ["nowhere.jsonl", "gone.parquet"]
    assert not (tmp_path / "out").exists()


def test_inputs_with_one_name_get_pairs_of_their_own(order, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").write_text("another")
    counts = tokenize_files(order(inputs=(str(tmp_path / "note.txt"), str(tmp_path / "other" / "note.txt")))).counts
    assert sorted(counts["sources"]) == ["note", "note_2"]
    assert counts["documents"] == 2


def test_a_report_says_how_the_vocabulary_fits_each_input_and_writes_nothing(order, tmp_path):
    report = report_files(order())
    assert sorted(source["source"] for source in report["sources"]) == ["ant", "note", "zebra"]
    assert not (tmp_path / "out").exists()
