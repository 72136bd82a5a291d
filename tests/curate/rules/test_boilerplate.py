"""Lines that a source's documents share go, where they are boilerplate; all else stays."""

import numpy as np
import pytest

from deepen.curate.passes.surveys import SurveyPart, conclude_survey, survey_part
from deepen.curate.rules.boilerplate_lines import BoilerplateLines
from deepen.formats.documents.documents import Document, content_hash, write_documents

MENU, FOOTER, NOTICE = "Home | About", "Copyright 2024", "Click here to get our weekly letter by mail"
STEP = BoilerplateLines(min_documents=5)
FEW = {"share": 0, "at_least": 0}


def document(text):
    return Document("0" * 32, text, "s", content_hash=content_hash(text))


@pytest.fixture
def found():
    return np.sort(STEP.keys(document("\n".join([MENU, FOOTER, NOTICE, "Results", "Contact", "0.5", "12"]))))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Home |  About\n\nOwn text.\n\nCopyright 2024\n", "Own text."),
        ("Title\nContact\nHome | About\nOwn text.", "Title\nOwn text."),
        ("Own text.\n\nResults\n\nMore text.", "Own text.\n\nResults\n\nMore text."),
        (f"Own text.\n\n{NOTICE}\n\nMore text.", "Own text.\n\nMore text."),
        ("Own text.\nContact", "Own text."),
        ("Own text.\n0.5\n12", "Own text.\n0.5\n12"),
        ("Home | About\nContact\n", "Home | About\nContact\n"),
        ("  Own.\n\n\n  Text.\n", "  Own.\n\n\n  Text.\n"),
    ],
)
def test_only_boilerplate_goes(found, before, after):
    assert STEP.apply_found(document(before), found).text == after


def test_lines_are_counted_by_document_over_a_whole_source(tmp_path, monkeypatch):
    monkeypatch.setattr("deepen.curate.passes.surveys._PENDING_KEYS", 3)
    monkeypatch.setattr("deepen.curate.passes.surveys._MERGED_KEYS", 4)
    parts = []
    for number in range(3):
        texts = [
            f"only {number} {row}\nshared\nshared\n{'rare' if row == 0 else row + 10 * number}" for row in range(3)
        ]
        write_documents(tmp_path / f"{number}.parquet", map(document, texts), tmp_path)
        parts.append(SurveyPart(f"s-{number}", str(tmp_path / f"{number}.parquet"), str(tmp_path), (), STEP, "f"))
    assert [survey_part(part)["documents"] for part in parts] == [3, 3, 3]
    conclude_survey("s", parts, 9)
    assert np.load(tmp_path / "s.found.npy").tolist() == STEP.keys(document("shared")).tolist()
    assert STEP.fewest_documents(9) == 5 and STEP.fewest_documents(100_000) == 100


def test_the_stage_counts_source_by_source(run, ingested, prose, texts, same_bytes):
    pages = [[f"{MENU}\n{prose(10 * part + row)}\n{FOOTER}" for row in range(4)] for part in range(3)]
    others = [f"{MENU}\n{prose(100 + row)}" for row in range(4)]
    corpus = ingested({"a": ("domain", pages), "b": ("replay", others)})
    steps = ["normalize", {"use": "boilerplate_lines", "min_documents": 5}]
    run(corpus, steps=steps, held_out=FEW)
    assert texts("documents", "a") == [prose(10 * part + row) for part in range(3) for row in range(4)]
    assert texts("documents", "b") == others
    run(corpus, steps=steps, held_out=FEW, out="two", workers=2)
    assert same_bytes("out", "two")


def test_a_kill_in_the_survey_changes_nothing(tmp_path, run, ingested, prose, same_bytes, monkeypatch):
    pages = [[f"{MENU}\n{prose(10 * part + row)}" for row in range(4)] for part in range(3)]
    corpus = ingested({"a": ("domain", pages)})
    steps = [{"use": "boilerplate_lines", "min_documents": 5}]
    run(corpus, steps=steps, held_out=FEW)
    with monkeypatch.context() as patch:
        patch.setattr("deepen.curate.stage.conclude_survey", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus, steps=steps, held_out=FEW, out="killed")
    (tmp_path / "killed/ledger/survey-0/00001.json").unlink()
    run(corpus, steps=steps, held_out=FEW, out="killed")
    assert same_bytes("out", "killed")
