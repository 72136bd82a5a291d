"""The search for test items in trained documents, against one that compares words by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepen.curate.contamination import scan as contamination
from deepen.curate.contamination.item_index import MEASURES, index_of
from deepen.curate.contamination.scan import TrainedDocuments, scan_documents
from deepen.engine.map_parts import clear_ledger
from deepen.formats.documents.document_ids import DocumentIds
from deepen.formats.documents.documents import Document, document_id, write_documents
from deepen.formats.documents.found_items import Hit, ProbeItem, strings_in
from deepen.formats.workers import Workers

# Few words, so that runs recur within a text, across texts and across items.
WORDS = st.lists(st.sampled_from("a b c d e f".split()), max_size=18)
ITEMS = st.lists(st.lists(WORDS.map(" ".join), min_size=1, max_size=3), min_size=1, max_size=4)
DOCUMENTS = st.lists(st.lists(st.sampled_from("a b c d e f".split()), max_size=40).map(" ".join), max_size=5)


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def by_hand(item: Sequence[str], document: str) -> tuple[int, float] | None:
    """The strongest measure by which a document holds an item, and its value."""
    long = [len(runs(text, 13) & runs(document, 13)) for text in item]
    if max(long) > 0:
        return 0, max(long)
    shares = [len(runs(text, 8) & runs(document, 8)) / len(runs(text, 8)) for text in item if runs(text, 8)]
    if shares and max(shares) >= 0.7:
        return 1, max(shares)
    longest = max(len(text.split()) for text in item)
    if 5 <= longest < 8 and any(runs(t, longest) & runs(document, longest) for t in item if len(t.split()) == longest):
        return 2, longest
    return None


@given(ITEMS, DOCUMENTS)
@settings(max_examples=300, deadline=None)
def test_the_index_finds_what_brute_force_finds(items: list[list[str]], documents: list[str]) -> None:
    from deepen.curate.contamination.kernel import word_hashes

    index = index_of(items, 5)
    for document in documents:
        expected = {n: found for n, item in enumerate(items) if (found := by_hand(item, document)) is not None}
        found = index.found_in(word_hashes(document), 0.7)
        assert found == {n: (measure, pytest.approx(value)) for n, (measure, value) in expected.items()}


def write(folder: Path, texts: Sequence[str]) -> list[str]:
    """Two files of one source and one of another; returns all ids in their order."""
    cut = len(texts) // 3
    names = []
    for part, own in enumerate([texts[:cut], texts[cut : 2 * cut], texts[2 * cut :]]):
        source = "notes" if part < 2 else "web"
        rows = [Document(document_id(source, f"{part}-{n}"), text, source) for n, text in enumerate(own)]
        write_documents(folder / f"{source}-{part % 2:05d}.parquet", rows, folder)
        names += [row.id for row in rows]
    return names


@given(
    ITEMS, st.lists(st.lists(st.sampled_from("a b c d".split()), max_size=30).map(" ".join), min_size=9, max_size=30)
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hits_are_counted_over_files(tmp_path: Path, items: list[list[str]], texts: list[str]) -> None:
    folder, scratch = tmp_path / "documents", tmp_path / "scratch"
    for path in folder.glob("*") if folder.is_dir() else ():
        path.unlink()
    clear_ledger(scratch / "ledger")
    names = write(folder, texts)
    asked = [ProbeItem("exam", "exam", str(n), tuple(item)) for n, item in enumerate(items)]
    found = scan_documents(asked, scratch, documents=TrainedDocuments(folder, "f"), workers=Workers())
    expected = []
    for number, item in enumerate(items):
        held = [(name, hit) for name, text in zip(names, texts, strict=True) if (hit := by_hand(item, text))]
        if held:
            measure = min(hit[0] for _, hit in held)
            value = max(hit[1] for _, hit in held if hit[0] == measure)
            first = tuple(name for name, _ in held[:5])
            expected.append(("exam", str(number), MEASURES[measure], pytest.approx(value), len(held), first))
    assert [(h.probe, h.id, h.measure, h.value, h.documents, h.first) for h in found.hits] == expected
    short = sum(max(len(text.split()) for text in item) < 5 for item in items)
    assert found.too_short == ({"exam": short} if short else {})


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = "one two three four five six seven eight nine"
    write(tmp_path / "documents", ["nothing of it", f"before {item} after", "no", f"{item}, {item}", "x", "y"])
    asked = [ProbeItem("exam", "exam", "1", (item.upper(),)), ProbeItem("other", "t", "1", ("too short",))]
    documents = TrainedDocuments(tmp_path / "documents", "f")
    read, seen = contamination.read_tables, list[str]()

    def dying(path: Path, columns: Sequence[str]) -> object:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(path.name)
        return read(path, columns)

    monkeypatch.setattr(contamination, "read_tables", dying)
    with pytest.raises(KeyboardInterrupt):
        scan_documents(asked, tmp_path / "scratch", documents=documents, workers=Workers())
    rest = list[str]()

    def noted(path: Path, columns: Sequence[str]) -> object:
        rest.append(path.name)
        return read(path, columns)

    monkeypatch.setattr(contamination, "read_tables", noted)
    found = scan_documents(asked, tmp_path / "scratch", documents=documents, workers=Workers())
    assert (seen, rest) == (["notes-00000.parquet", "notes-00001.parquet"], ["web-00000.parquet"])
    held = [document_id("notes", name) for name in ("0-1", "1-1")]
    hit = Hit(probe="exam", task="exam", id="1", measure="8_grams", value=1.0, documents=2, first=tuple(held))
    assert found.hits == (hit,) and found.too_short == {"other": 1}
    many = scan_documents(asked, tmp_path / "other", documents=documents, workers=Workers(2))
    assert many == found
    asked_about: list[list[str]] = []

    def trained(ids: Any) -> Any:
        asked_about.append(DocumentIds(ids)[:])
        return np.array([name == held[1] for name in asked_about[-1]])

    some = scan_documents(asked, tmp_path / "other", documents=replace(documents, trained=trained), workers=Workers())
    assert asked_about == [held] and some.hits == (hit.model_copy(update={"documents": 1, "first": (held[1],)}),)
    changed = [ProbeItem("exam", "exam", "1", ("another item that nobody has ever written down before",))]
    assert scan_documents(changed, tmp_path / "scratch", documents=documents, workers=Workers()).hits == ()


def test_all_strings_of_a_row_are_texts() -> None:
    assert strings_in({"q": "a", "n": 3, "c": ["b", {"d": "e", "f": None}], "t": ("g",)}) == ["a", "b", "e", "g"]
