"""Each step changes or drops what it should, and nothing else."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deepen.curate.config import STEPS, CurateConfig
from deepen.curate.kernels.repetition import QUANTITIES, measure
from deepen.curate.rules.gopher_repetition import GopherRepetition
from deepen.curate.rules.length import LengthStep
from deepen.curate.rules.normalize import Normalize, normalized
from deepen.curate.step import Drop
from deepen.formats.documents.documents import Document

CODE = 'def café(x):\n\tif x >= 0 and x != "“quoted”":\n\t\treturn x**2  # naïve \\n\n'
FRENCH = "Âge légal : « l'été » à Noël, où ça — œuvre, Ã est une lettre, £5 et 20 °C…"
HINDI = "क्‍षेत्र में ज्ञान की वृद्धि॥ \u200dऔर\u200c विकास, १२३।"
CHINESE = "深度學習（Deep Learning）是一種方法，全形：１２３，「引號」。\u3000縮排"
OTHERS = "مرحبا بالعالم\u200f، עברית, ไทย, 한국어, emoji 👩\u200d👩\u200d👧 ﬁ ½ ①"


def document(text):
    return Document("0" * 32, text, "s")


@pytest.mark.parametrize("text", [CODE, FRENCH, HINDI, CHINESE, OTHERS, "plain\n\n  indented\ttab\n"])
def test_normalize_leaves_good_text_alone(text):
    assert normalized(text) == text
    assert Normalize().apply(document(text)) == document(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cafe\u0301", "café"),
        ("one\r\ntwo\rthree\x0cfour\u2028five\x85six", "one\ntwo\nthree\nfour\nfive\nsix"),
        ("\ufeffa\x00b\x07c\x7f\x9fd", "abcd"),
        ("It costs â‚¬5, said the cafÃ© owner", "It costs €5, said the café owner"),
        ("good “quotes” stay\nbad â€œonesâ€\x9d go", "good “quotes” stay\nbad “ones” go"),
    ],
)
def test_normalize_repairs(before, after):
    assert normalized(before) == after


@settings(deadline=None)  # the first call compiles
@given(st.text())
def test_normalizing_twice_changes_nothing_more(text):
    once = normalized(text, mojibake=False)
    assert normalized(once, mojibake=False) == once
    assert not set(once) & set(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))


def test_normalize_drops_what_is_left_empty_and_may_keep_mojibake():
    assert Normalize().apply(document("\x00 \x07\n")) == Drop("nothing_left", 0.0)
    assert Normalize(mojibake=False).apply(document("cafÃ©")).text == "cafÃ©"


@pytest.mark.parametrize(
    ("setting", "text", "result"),
    [
        ({"min": "5 characters"}, "abcd", Drop("too_short", 4)),
        ({"min": "3 words"}, "one two", Drop("too_short", 2)),
        ({"min": None, "max": "2 tokens"}, "ééééé", Drop("too_long", 3)),
        ({"min": 4}, "éééé", {"length.characters": 4}),
        ({"min": "2 words", "max": "1k characters"}, "two words", {"length.words": 2, "length.characters": 9}),
    ],
)
def test_length(setting, text, result):
    found = LengthStep.model_validate({"use": "length", **setting}).apply(document(text))
    assert found == result if isinstance(result, Drop) else found.scores == result


@pytest.mark.parametrize("bad", [{"min": "3 miles"}, {"min": -1}, {"min": "1.5 words"}, {"min": 9, "max": 3}])
def test_bad_lengths_are_refused(bad):
    with pytest.raises(ValidationError):
        LengthStep.model_validate({"use": "length", **bad})


def plain_measure(text):
    """The thirteen shares, written as plainly as the rules are stated."""
    shares = []
    for separator in (r"\n+", r"\n{2,}"):
        pieces = [piece for piece in re.split(separator, text.strip("\n")) if piece.strip()]
        repeated = [piece for number, piece in enumerate(pieces) if piece in pieces[:number]]
        shares += [len(repeated) / max(1, len(pieces)), sum(map(len, repeated)) / len(text)]
    words = text.split()
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[number : number + n]) for number in range(len(words) - n + 1))
        top, count = grams.most_common(1)[0] if grams else ("", 0)
        shares.append(min(1.0, len(top) * count / len(text)) if count > 1 else 0.0)
    for n in range(5, 11):
        seen, characters, number = set(), 0, 0
        while number <= len(words) - n:
            gram = tuple(words[number : number + n])
            repeats = gram in seen
            characters += len("".join(gram)) if repeats else 0
            seen.add(gram)
            number += n if repeats else 1
        shares.append(characters / len(text))
    return dict(zip(QUANTITIES, shares, strict=True))


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from(["a", "bé", "c", "\n", "\n\n", " ", "\u3000", "щ"]), min_size=1, max_size=60))
def test_repetition_is_counted_as_the_rules_say(pieces):
    text = "".join(piece if piece.isspace() else piece + " " for piece in pieces)
    assert dict(zip(QUANTITIES, measure(text).tolist(), strict=True)) == pytest.approx(plain_measure(text))


def test_a_repeat_moves_on_by_n_words():
    text = " ".join(["one", "two", "three", "four", "five"] * 3)
    shares = dict(zip(QUANTITIES, measure(text), strict=True))
    assert shares["duplicate_5_gram_characters"] == pytest.approx(2 * len("onetwothreefourfive") / len(text))
    assert shares["duplicate_10_gram_characters"] == pytest.approx(2 * len("onetwothreefourfive") / len(text))
    assert measure("one two three four five six seven eight nine ten")[4:].sum() == 0


def test_scripts_without_spaces_are_counted_by_character():
    shares = dict(zip(QUANTITIES, measure("深度學習深度學習深度學習"), strict=True))
    assert shares["top_4_gram_characters"] == pytest.approx(1.0)
    assert shares["duplicate_5_gram_characters"] == pytest.approx(5 / 12)
    assert measure("")[0] == 0


def test_repetition_drops_by_the_first_broken_rule_and_scores_the_rest(prose):
    fine = GopherRepetition().apply(document(prose(1)))
    assert len(fine.scores) == 13 and all(name.startswith("gopher_repetition.") for name in fine.scores)
    lines = GopherRepetition().apply(document("\n".join([prose(1), *["click here"] * 9])))
    assert lines == Drop("duplicate_lines", 8 / 10)
    assert isinstance(GopherRepetition(max_duplicate_lines=0.9).apply(document("\n".join(["a b"] * 5))), Drop)


def test_steps_are_named_as_they_are_used():
    needed = {"decontaminate": {"against": ["items.jsonl"]}, "limit": {"documents": 5}}
    config = CurateConfig.model_validate({"steps": [{"use": name, **needed.get(name, {})} for name in STEPS]})
    assert [step.use for step in config.steps] == list(STEPS)
    assert config == CurateConfig.model_validate(config.model_dump(mode="json"))
    assert CurateConfig() == CurateConfig.model_validate(CurateConfig().model_dump(mode="json"))
    with pytest.raises(ValidationError, match="did you mean `normalize`"):
        CurateConfig.model_validate({"steps": ["normalise"]})
    with pytest.raises(ValidationError, match="no curation step"):
        CurateConfig.model_validate({"steps": ["deepen.plug:Plug"]})
