"""Turns are shown with roles, and what is not learned in brackets."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from deepen.formats.documents.document_ids import pack_ids
from deepen.formats.documents.documents import Document, Span, document_id
from deepen.formats.manifest import Artifact, CodeVersion, Manifest
from deepen.formats.tokens.megatron import IndexedDatasetWriter
from deepen.formats.tokens.trained import TrainedWriter
from deepen.runs.show.turns import document_record, masked_documents

WORDS = ["why", "because", "it", "is", "<end>"]


def test_turns_instead_of_spans() -> None:
    spans = (Span("user", 0, 1), Span("assistant", 3, 4))
    record = document_record(Document("0" * 32, "a\n\nb", "s", spans=spans))
    assert [(turn["role"], turn["trained"], turn["text"]) for turn in record["turns"]] == [
        ("user", False, "a"),
        ("assistant", True, "b"),
    ]
    assert "turns" not in document_record(Document("0" * 32, "a", "s"))


def test_what_is_not_learned_stands_in_brackets(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer/tokenizer.json"))
    for name, flags in (("chat", np.array([0, 0, 1, 1], np.uint8)), ("plain", None)):
        with IndexedDatasetWriter(tmp_path / "shards" / name, np.uint16) as writer:
            writer.add_documents(np.array([0, 3, 1, 4], np.uint16), np.array([4]))
        with TrainedWriter(tmp_path / "shards" / name) as mask:
            mask.add(4, flags)
        (tmp_path / "documents").mkdir(exist_ok=True)
        np.save(tmp_path / f"documents/{name}.npy", pack_ids([document_id(name, "1")]))
    manifest = Manifest(
        stage="tokenize", format=1, fingerprint="f", config={}, inputs={},
        counts={"sources": {"chat": {}, "plain": {}}}, code=CodeVersion(version="0"), started="", finished="",
    )  # fmt: skip
    (record,) = masked_documents(Artifact(tmp_path, manifest), 5)
    assert (record["document"], record["tokens"], record["targets"]) == (document_id("chat", "1"), 4, 2)
    assert record["text"] == "\u27e6why is\u27e7because <end>"
