"""Megatron pairs as a source: what another tokenizer wrote comes back as text."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from deepen.formats.tokens.megatron import IndexedDatasetWriter
from deepen.ingest.config import Source
from deepen.ingest.files import list_files
from deepen.ingest.read.megatron import read_megatron
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record, Reject
from deepen.ingest.stage import source_fingerprint

TEXTS = ["naïve café\n", "हिन्दी", "x = 1  # code\n\n"]


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={"<|end|>": 0} | {c: n for n, c in enumerate(alphabet, 1)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


def write_pair(prefix, tokenizer, texts=TEXTS, end=0, wrong=()):
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    with IndexedDatasetWriter(prefix, np.dtype("uint16")) as writer:
        for text in texts:
            ids = [*encoder.encode(text).ids, *wrong, *([end] if end is not None else [])]
            writer.add_documents(np.array(ids, np.uint16), np.array([len(ids)]))


def read(prefix, tokenizer):
    (file,) = list_files(str(prefix), "megatron")
    return list(read_megatron(file, Reading(format="megatron", tokenizer=str(tokenizer))))


def test_documents_come_back_as_text_without_their_end(tmp_path, tokenizer):
    write_pair(tmp_path / "data", tokenizer)
    records = read(tmp_path / "data", tokenizer)
    assert [record.values["text"] for record in records if isinstance(record, Record)] == TEXTS
    assert records[1].location == "data.idx:1"


def test_ids_outside_the_vocabulary_cost_their_document_only(tmp_path, tokenizer):
    write_pair(tmp_path / "data", tokenizer, ["a"], wrong=[999])
    (found,) = read(tmp_path / "data", tokenizer)
    assert isinstance(found, Reject) and found.reason == "id_outside_vocabulary" and "999" in found.detail


def test_a_pair_whose_documents_end_with_another_id_is_not_of_this_tokenizer(tmp_path, tokenizer):
    write_pair(tmp_path / "data", tokenizer, end=2)
    (found,) = read(tmp_path / "data", tokenizer)
    assert (found.reason, found.num_records) == ("wrong_tokenizer", 3)
    assert "id 2" in found.detail and "data.idx" in found.location


def test_a_pair_without_ends_of_documents_is_named_with_the_remedy(tmp_path, tokenizer):
    write_pair(tmp_path / "data", tokenizer, end=None)
    (found,) = read(tmp_path / "data", tokenizer)
    assert (found.reason, found.num_records) == ("end_of_document_missing", 3)
    assert "--append-eod" in found.detail


def test_a_truncated_pair_is_a_named_reject(tmp_path, tokenizer):
    write_pair(tmp_path / "data", tokenizer)
    data = (tmp_path / "data.bin").read_bytes()
    (tmp_path / "data.bin").write_bytes(data[:-4])
    (found,) = read(tmp_path / "data", tokenizer)
    assert found.reason == "unreadable_pair"


def test_tokens_and_tokenizer_are_part_of_the_identity(tmp_path, tokenizer):
    write_pair(tmp_path / "data", tokenizer)
    source = Source(name="old", role="replay", path=str(tmp_path / "data"), format="megatron", tokenizer=str(tokenizer))
    before = source_fingerprint(source, tmp_path / "cache.json")
    write_pair(tmp_path / "data", tokenizer, [TEXTS[0], TEXTS[1], "y = 1  # code\n\n"])
    assert source_fingerprint(source, tmp_path / "cache.json") != before


@pytest.mark.parametrize("settings", [{"format": "megatron"}, {"tokenizer": "x"}])
def test_pair_and_tokenizer_go_together(settings):
    with pytest.raises(ValidationError, match="go together"):
        Source.model_validate({"name": "a", "role": "replay", "path": "x", **settings})
