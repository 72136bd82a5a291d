"""Who said what still holds after every step: no span shifts by a character."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.curate.batch.spans import of_pieces
from deepen.curate.config import CurateConfig
from deepen.curate.passes.chain import apply_steps
from deepen.curate.rules.boilerplate_lines import BoilerplateLines
from deepen.curate.rules.c4 import C4
from deepen.curate.rules.normalize import Normalize, normalized
from deepen.curate.stage import curate
from deepen.curate.step import DocumentStep, Drop
from deepen.formats.documents.documents import Document, Span, content_hash, read_documents, write_documents
from deepen.formats.manifest import StageJob

ROLES = ("user", "assistant")
MESSY = st.text(alphabet=st.sampled_from("ab \n\r\x00é́Ã©中\ufeff"), max_size=12)


def conversation(contents, between="\n\n"):
    spans, text = [], ""
    for number, content in enumerate(contents):
        text += between if text else ""
        spans.append(Span(ROLES[number % 2], len(text), len(text) + len(content)))
        text += content
    return Document("0" * 32, text, "s", spans=tuple(spans))


def contents_of(document):
    return [document.text[span.begin : span.end] for span in document.spans]


@given(st.lists(MESSY, max_size=6), st.sampled_from(["\n\n", ""]))
def test_normalised_spans_are_the_normalised_contents(contents, between):
    document = conversation(contents, between)
    result = Normalize().apply(document)
    if not isinstance(result, Drop):
        assert contents_of(result) == [normalized(content) for content in contents_of(document)]
        assert result.text == conversation(contents_of(result), between).text or "" in contents_of(result)


@given(st.lists(st.text(alphabet="é中.", max_size=6), min_size=1, max_size=5), st.data())
def test_what_stays_of_a_span_is_what_it_holds(contents, data):
    own = [content.replace(".", str(number)) for number, content in enumerate(contents)]
    document = conversation([f"{number}{content}" for number, content in enumerate(own)], between="-中-")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(document.text)), max_size=8)))
    kept = list(zip(cuts[::2], cuts[1::2], strict=False))
    in_bytes = [tuple(len(document.text[:place].encode()) for place in piece) for piece in kept]
    result = of_pieces(document, document.text.encode(), [("", *piece) for piece in in_bytes])
    stay = {place for first, last in kept for place in range(first, last)}
    for before, after in zip(document.spans, contents_of(result), strict=True):
        assert after == "".join(document.text[place] for place in range(before.begin, before.end) if place in stay)
    ends = [place for span in result.spans for place in (span.begin, span.end)]
    assert ends == sorted(ends)


def test_c4_takes_lines_and_references_out_of_turns():
    answer = (
        "It is a big river [12] in Europe, as everybody knows.\nMenu\nIt flows through Ulm and Vienna, and further."
    )
    result = C4(min_sentences=1).apply(conversation(["What is the Danube, if I may ask?", answer]))
    told = answer.replace(" [12]", " ").replace("Menu\n", "")
    assert contents_of(result) == ["What is the Danube, if I may ask?", told]


def test_boilerplate_is_taken_out_of_the_turn_that_has_it():
    step, notice = BoilerplateLines(), "This call may be recorded for quality purposes."
    document = conversation(["Hello?", f"{notice}\nHow can I help?", "It broke."])
    found = step.keys(conversation([notice, ""]))
    result = step.apply_found(document, found)
    assert contents_of(result) == ["Hello?", "How can I help?", "It broke."]


def test_without_an_answer_left_the_document_goes():
    document = conversation(["What is it?", "Menu"])
    result = apply_steps([C4(min_sentences=1, min_words_per_line=2)], document)
    assert isinstance(result, Drop) and result.reason == "no_answer_left"


class Shouting(DocumentStep):
    def apply(self, document):
        return Document(document.id, document.text + "!", document.source, spans=document.spans)


@pytest.mark.parametrize("spans", [None, (Span("assistant", 0, 1),)])
def test_a_step_that_knows_nothing_of_spans_cannot_move_them(spans):
    result = apply_steps([Shouting(use="x:Shouting")], Document("0" * 32, "a", "s", spans=spans))
    assert (result.reason == "spans_lost") if spans else (result.text == "a!")


def test_the_stage_keeps_the_spans_of_kept_and_held_out_documents(ingested, tmp_path, prose):
    talks = {
        number: [f"{prose(number)}\r\nCafe\u0301?", f"\ufeff{prose(900 + number)}\x00 so.\r\n"] for number in range(60)
    }
    documents = [conversation(contents) for contents in talks.values()]
    documents = [replace(d, id=f"{n:032x}", content_hash=content_hash(d.text)) for n, d in enumerate(documents)]
    documents = [d if n % 3 else replace(d, spans=None) for n, d in enumerate(documents)]
    artifact = ingested({"s": ("domain", ["x"] * 60)})
    entry, _ = write_documents(artifact.path / "documents/s-00000.parquet", documents, artifact.path)
    artifact = replace(artifact, manifest=artifact.manifest.model_copy(update={"files": (entry,)}))
    config = CurateConfig.model_validate({"steps": ["normalize", "boilerplate_lines", "length"]})
    curate(config, StageJob(out=tmp_path / "out", fingerprint="f", inputs={"ingest": artifact}))
    files = [tmp_path / "out/documents/s-00000.parquet", tmp_path / "out/held_out/s.parquet"]
    kept, held_out = (list(read_documents(path)) for path in files)
    assert len(kept) + len(held_out) == 60 and any(document.spans for document in held_out)
    for document in [*kept, *held_out]:
        number = int(document.id, 16)
        assert (document.spans is None) == (number % 3 == 0)
        if document.spans is not None:
            assert contents_of(document) == [normalized(content) for content in talks[number]]
