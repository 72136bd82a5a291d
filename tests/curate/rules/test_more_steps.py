"""C4's lines, languages, limits and test items: each step takes what it should, and says so."""

import gzip
import json

import pytest
from pydantic import ValidationError

from deepen.curate.config import CurateConfig, problems
from deepen.curate.contamination.decontaminate import Decontaminate
from deepen.curate.rules.c4 import C4
from deepen.curate.rules.language import Language, recognise
from deepen.curate.rules.limit import Limit
from deepen.curate.step import Drop
from deepen.errors import SourceError
from deepen.formats.documents.documents import Document

SENTENCES = [f"This is a sentence of text, and number {number}." for number in "one two three four five six".split()]
ITEM = (
    "Which of the following drugs is the first choice for an adult with newly diagnosed high blood pressure and gout?"
)
ANSWER = 'It don\'t matter much, as "each of them" was shown to be safe.'


def document(text, language=None):
    return Document("0" * 32, text, "s", language=language)


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("A good line!", "A good line!"),
        ("  A cited line.[12][3]  ", "A cited line."),
        ('He said: "Yes, we can."', 'He said: "Yes, we can."'),
        ("这是一个 很好 的句子。", "这是一个 很好 的句子。"),
        ("and so it goes...", None),
        ("No end", None),
        ("Two words.", None),
        ("Please turn on JavaScript now.", None),
        ("This site uses cookies to work.", None),
        ("Read our Terms of Useful things.", None),
        ("The PRIVACY POLICY is here.", None),
        ("The terms of us and a policy.", "The terms of us and a policy."),
        (f"One {'x' * 1001} word.", None),
    ],
)
def test_c4_keeps_sentences(line, stays):
    kept = C4().apply(document("\n".join([*SENTENCES, "", line, "", ""])))
    assert kept.text == "\n".join(SENTENCES) + (f"\n\n{stays}" if stays else "")
    assert kept.scores["c4.kept_lines"] == (1.0 if stays else 6 / 7) and kept.scores["c4.sentences"] >= 6


def test_c4_drops_documents_and_its_rules_can_be_turned_off():
    page = "\n".join(SENTENCES)
    assert C4().apply(document(f"{page}\nint main {{ return 0.")).reason == "curly_brace"
    assert C4().apply(document(f"{page}\nLorem Ipsum dolor sit.")).reason == "lorem_ipsum"
    assert C4().apply(document("\n".join(SENTENCES[:4]))) == Drop("too_few_sentences", 4)
    relaxed = C4(terminal_punctuation=False, braces=False, references=False, min_words_per_line=0)
    assert relaxed.apply(document(f"{page}\n{{}}[1]")).text == f"{page}\n{{}}[1]"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox jumps over the lazy dog while the others look on and say nothing.", "en"),
        ("Der schnelle braune Fuchs springt über den faulen Hund, und die anderen schauen zu.", "de"),
        ("यह भारतीय साहित्य की प्रसिद्ध कहानियों में से एक कहानी है।", "hi"),
    ],
)
def test_languages_are_recognised(text, language):
    found = Language().apply(document(text))
    assert found.language == language and found.scores["language.score"] > 0.9
    assert Language(keep=(language,)).apply(document(text)) == found
    assert Language(keep=("fr", "unknown")).apply(document(text)).reason == f"language_{language}"


def test_a_language_that_cannot_be_told_is_what_the_source_says():
    assert Language(keep=("en",)).apply(document("12 34 56")).reason == "language_unknown"
    assert Language(keep=("en", "unknown")).apply(document("12 34 56")).language is None
    assert Language(keep=("en",)).apply(document("12 34 56", "en")).language == "en"
    with pytest.raises(ValidationError):
        Language(keep=("English",))


def test_languages_are_told_from_three_places():
    english = "There is nothing in this place that anyone would want to read about. " * 40
    assert recognise("Weiter " * 20 + english) == recognise("Zurück " * 20 + english)


def test_limits_are_kept_by_content_or_order(run, ingested, prose, texts):
    corpus = ingested({"a": ("domain", [prose(seed) for seed in range(9)]), "b": ("replay", [prose(50)])})
    counts = run(corpus, steps=[{"use": "limit", "documents": 4, "by": "order"}], held_out={"share": 0, "at_least": 0})
    assert texts("documents", "a") == [prose(seed) for seed in range(4)] and counts["b"]["documents_kept"] == 1
    assert counts["a"]["dropped"] == {"beyond_limit": 5}
    run(corpus, out="hash", steps=[{"use": "limit", "tokens": 500}], held_out={"share": 0, "at_least": 0})
    kept = texts("documents", "a", out="hash")
    assert 0 < sum(map(len, kept)) <= 2000 < sum(map(len, kept)) + 700
    with pytest.raises(ValidationError, match="documents"):
        Limit()


def test_sources_may_have_limits_of_their_own(run, ingested, prose):
    corpus = ingested(
        {
            name: ("domain", [prose(seed + first) for seed in range(9)])
            for first, name in ((0, "a"), (20, "b"), (40, "c"))
        }
    )
    step = {"use": "limit", "documents": {"a": 4, "c": "5 documents"}, "tokens": {"c": 400}, "by": "order"}
    counts = run(corpus, steps=[step], held_out={"share": 0, "at_least": 0})
    assert [counts[name]["documents_kept"] for name in "abc"] == [4, 9, 2]


def test_limits_of_sources_that_are_not_there_are_problems():
    step = {"use": "limit", "documents": {"web": 4, "wbe": 4}, "tokens": {"x": 5}}
    config = CurateConfig.model_validate({"steps": [step, {"use": "limit", "documents": 3}]})
    found = [(problem.path, problem.value) for problem in problems(config, ["web", "papers"])]
    assert found == [("curate.steps[0].documents", "wbe"), ("curate.steps[0].tokens", "x")]
    assert problems(config) == []
    for wrong in ({}, {"web": 0}):
        with pytest.raises(ValidationError):
            Limit.model_validate({"documents": wrong})


@pytest.fixture
def step(tmp_path):
    items = [{"question": ITEM, "choices": [ANSWER, "none"], "label": 1}, {"q": ["Who painted the ceiling of it?"]}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n\n")
    return Decontaminate(against=(str(tmp_path / "items.jsonl"),))


@pytest.mark.parametrize(
    ("text", "reason", "item"),
    [
        (ITEM, "contaminated_13_gram", 1),
        (ITEM.upper().replace(" ", "\n"), "contaminated_13_gram", 1),
        (ITEM.replace(" ", ", "), "contaminated_13_gram", 1),
        (" ".join(ITEM.split()[3:16]), "contaminated_13_gram", 1),
        ("It don’t matter much -- as each of them was shown to be", "contaminated_8_grams", 1),
        ("WHO PAINTED THE CEILING OF IT", "contaminated_phrase", 2),
    ],
)
def test_test_items_are_found(step, prose, text, reason, item):
    drop = step.apply(document(f"{prose(1)} {text} {prose(2)}"))
    assert drop.reason == reason and drop.detail.startswith(f"items.jsonl:{item}: ")


def test_what_only_resembles_a_test_item_stays(step, prose):
    text = f"{prose(1)} {' '.join(ITEM.split()[:12])} {prose(2)}. Who painted it? None."
    kept = step.apply(document(text))
    assert 0 < kept.scores["decontaminate.share_8_grams"] < 0.7
    assert step.apply(document(prose(3))).scores["decontaminate.share_8_grams"] == 0
    strict = step.model_copy(update={"min_share_8_grams": 0.3})
    assert strict.apply(document(text)).reason == "contaminated_8_grams"


def test_items_may_be_packed_and_must_be_there_and_be_json(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(ITEM))
    packed = Decontaminate(against=(str(tmp_path / "*.gz"),))
    assert packed.apply(document(ITEM)).detail.startswith("a.jsonl.gz:1: Which of")
    missing = {"use": "decontaminate", "against": [str(tmp_path / "none.jsonl")]}
    assert "none.jsonl" in problems(CurateConfig.model_validate({"steps": [missing]}))[0].message
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(SourceError, match=r"bad.jsonl` line 1 is no JSON"):
        Decontaminate(against=(str(tmp_path / "bad.jsonl"),)).apply(document("x"))


def test_the_item_is_shown_with_the_drop(run, ingested, prose, drops, step):
    artifact = ingested({"a": ("domain", [prose(1), f"{prose(2)} {ITEM}", prose(3)])})
    counts = run(artifact, steps=[step.model_dump(mode="json")])["a"]
    assert counts["dropped"] == {"contaminated_13_gram": 1}
    assert "first choice for an adult" in drops("a")[0]["detail"]
