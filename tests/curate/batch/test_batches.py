"""A batch of documents comes out of the steps as the documents would one by one; what was measured is kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.curate.batch.columns import batches_of
from deepen.curate.passes.chain import apply_steps, apply_to_batch
from deepen.curate.passes.corpus import save_array
from deepen.curate.passes.surveys import surveyed
from deepen.curate.rules.boilerplate_lines import BoilerplateLines
from deepen.curate.rules.c4 import C4
from deepen.curate.rules.fineweb import FineWeb
from deepen.curate.rules.gopher_quality import GopherQuality
from deepen.curate.rules.gopher_repetition import GopherRepetition
from deepen.curate.rules.language import Language
from deepen.curate.rules.length import LengthStep
from deepen.curate.rules.normalize import Normalize, normalized
from deepen.curate.step import DocumentStep, Drop
from deepen.formats.documents.documents import (
    Document,
    Span,
    content_hash,
    document_id,
    documents_of,
    read_tables,
    table_of,
)

PIECES = st.sampled_from(
    ["The end of it.", " the and of ", "\n", "\n\n", "[12]", "[edit]", "- x", "...", "café ", "cafÃ©", "漢字。", "\r\n"]
    + [
        "\x00",
        "Cookie Policy",
        "lorem IPSUM",
        "{",
        "#",
        "e\u0301",
        "It is said that this is so.\n",
        "\u2028",
        " x" * 30,
    ]
)
TEXTS = st.lists(st.lists(PIECES, max_size=30).map("".join), min_size=1, max_size=6)
LOOSE = GopherQuality(min_words=0, min_stop_words=0, symbols_are_words=False, min_words_with_letter=0.1)


class Shout(DocumentStep):
    """A step without a batch form, as others write them."""

    use: str = "shout"

    def apply(self, document):
        if "漢" in document.text:
            return Drop("quiet", 1.0, "a detail", scores={"shout.volume": 1.0})
        scores = document.scores | {"shout.volume": 2.0}
        return Document(**{**vars(document), "text": document.text.upper(), "language": "en", "scores": scores})


def document(number, text, **fields):
    return Document(document_id("s", str(number)), text, "s", content_hash=content_hash(text), **fields)


def in_batches(steps, documents):
    """What stays, and drops by id as (reason, value, detail, scores)."""
    kept, drops = [], {}
    for batch in batches_of(table_of(documents)):
        dropped = apply_to_batch(steps, batch)
        kept += documents_of(batch.kept().to_pylist())
        for row in dropped.table(batch).to_pylist():
            drops[row["id"]] = (row["reason"], row["value"], row["detail"], dict(row["scores"]))
    return kept, drops


def one_by_one(steps, documents):
    results = {item.id: apply_steps(steps, item) for item in documents}
    kept = [item for item in results.values() if isinstance(item, Document)]
    drops = {name: item for name, item in results.items() if isinstance(item, Drop)}
    return kept, {name: (drop.reason, drop.value, drop.detail, drop.scores) for name, drop in drops.items()}


CHAINS = [
    (Normalize(), LengthStep(min="5 characters", max="40 words"), LOOSE),
    (GopherQuality(language="en"), GopherRepetition()),
    (Normalize(mojibake=False), C4(min_sentences=1), LOOSE, GopherRepetition(as_datatrove=True)),
    (FineWeb(min_terminal_lines=0, max_newlines=9), Shout(), C4(min_sentences=0, references=False), LOOSE),
    (Shout(), Language(), LengthStep()),
]


@pytest.mark.parametrize("steps", CHAINS, ids=lambda steps: "-".join(step.use for step in steps))
@settings(deadline=None, max_examples=40)
@given(texts=TEXTS)
def test_a_batch_is_its_documents_one_by_one(steps, texts):
    documents = [document(number, text, scores={"before": float(number)}) for number, text in enumerate(texts)]
    assert in_batches(steps, documents) == one_by_one(steps, documents)


@settings(deadline=None, max_examples=40)
@given(texts=TEXTS)
def test_documents_with_spans_go_with_others(texts):
    spans = [(Span("user", 0, len(text) // 2), Span("assistant", len(text) // 2, len(text))) for text in texts]
    documents = [
        document(n, text, spans=own if n % 2 else None) for n, (text, own) in enumerate(zip(texts, spans, strict=True))
    ]
    steps = (Normalize(), C4(min_sentences=0, terminal_punctuation=False), LOOSE)
    assert in_batches(steps, documents) == one_by_one(steps, documents)


@settings(deadline=None, max_examples=40)
@given(texts=TEXTS)
def test_boilerplate_is_found_alike(texts, tmp_path_factory):
    step, folder = BoilerplateLines(min_words=3), tmp_path_factory.mktemp("survey")
    documents = [document(number, text) for number, text in enumerate(texts)]
    (batch,) = batches_of(table_of(documents))
    keys = [step.keys(item) for item in documents]
    assert step.batch_keys(batch).tolist() == np.concatenate(keys).tolist()
    save_array(folder / "s.found.npy", np.unique(np.concatenate(keys))[::2])
    bound = surveyed(step, str(folder))
    assert in_batches((bound,), documents) == one_by_one((bound,), documents)


def test_batches_are_put_together_to_row_groups_again(ingested, run, tmp_path):
    pages = [f"{number}. " + "word after word is written here, and so on. " * 40 for number in range(1300)]
    run(ingested({"s": ("domain", pages)}), steps=["normalize", "length"], held_out={"at_least": 0, "share": 0})
    assert [table.num_rows for table in read_tables(tmp_path / "out/documents/s-00000.parquet")] == [1000, 300]


def test_dropped_documents_keep_what_was_measured(ingested, run, drops, prose):
    lists = "\n".join([prose(1), *["click here"] * 9])
    steps = ["length", "gopher_repetition", "exact_duplicates"]
    run(ingested({"s": ("domain", [prose(2), lists, prose(2), "short"])}), steps=steps)
    found = {row["reason"]: dict(row["scores"]) for row in drops()}
    assert found["too_short"] == {"length.characters": 5}
    assert found["duplicate_lines"]["gopher_repetition.duplicate_lines"] == 0.8
    assert len(found["duplicate_lines"]) == len(found["exact_duplicate"]) == 14


def test_a_step_of_ones_own_needs_no_batch_form(ingested, run, texts):
    steps = ["normalize", {"use": f"{__name__}:Shout"}, "length"]
    run(ingested({"s": ("domain", ["so it goes. " * 30])}), steps=steps)
    assert texts("documents", "s") == ["SO IT GOES. " * 30]


def test_large_texts_are_normalised_piece_by_piece(monkeypatch):
    monkeypatch.setattr("deepen.curate.rules.normalize._SEGMENT_BYTES", 40)
    text = "e\u0301a " * 30 + "\u00e9\r\n" * 20 + "plain words " * 9 + "caf\u00c3\u00a9 " * 5
    documents = [document(0, text), document(1, "short e\u0301"), document(2, "\x00 \n" * 50)]
    kept, drops = in_batches((Normalize(),), documents)
    assert [item.text for item in kept] == [normalized(text), "short \u00e9"]
    assert (kept, drops) == one_by_one((Normalize(),), documents)
