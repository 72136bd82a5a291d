"""The quality rules count as they say, whatever splits the text into words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deepen.curate.batch.text_facts import lines_of, words_of
from deepen.curate.kernels.words import split_words
from deepen.curate.rules.fineweb import FineWeb
from deepen.curate.rules.gopher_quality import GopherQuality
from deepen.curate.rules.gopher_repetition import GopherRepetition
from deepen.curate.rules.stop_words import STOP_WORDS, count_stop_words
from deepen.formats.documents.documents import Document

ENGLISH = "It was the best of times, and that is all we have to say with joy. " * 4


def document(text, language=None):
    return Document("0" * 32, text, "s", language=language)


def words(text):
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    columns = [np.empty(len(data) + 1, dtype=kind) for kind in (np.int32, np.int32, np.uint64, np.int32, np.uint8)]
    count = split_words(data, *columns)
    spans = zip(columns[0][:count].tolist(), columns[1][:count].tolist(), strict=True)
    return [data[start:end].tobytes().decode() for start, end in spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't you? (He's [sic] \"right\".)", "Do n't you ? ( He 's [ sic ] \" right \" . )"),
        ("well-known COVID-19 2-3 12-car and/or mg/kg", "well - known COVID-19 2 - 3 12 - car and/or mg / kg"),
        ("can’t n't won't've it's 30mph 4G, 2.5kg 50+ 7Q", "ca n’t n't wo n't 've it 's 30 mph 4 G , 2.5 kg 50 + 7Q"),
        (
            "(2012-07-09-how-to.md) Go.USA.gov/a-b mailto:me@x-y.org.",
            "( 2012-07-09-how-to.md ) Go.USA.gov/a-b mailto:me@x-y.org .",
        ),
        (
            "x-y.gov’s red-Blue.No a-b_.md **Q:** so :-) 0·5 µg 1º",
            "x-y.gov ’s red - Blue . No a - b_.md * * Q :* * so :-) 0·5 µg 1º",
        ),
        ("The U.S. in 1,000 of 3.5, e.g. J. Doe etc.", "The U.S. in 1,000 of 3.5 , e.g. J. Doe etc ."),
        ("end.Next wait...what --- foo.bar a_b", "end . Next wait ... what --- foo.bar a_b"),
        ("see http://x.org/a-b?c=d. #tag 50% $5", "see http://x.org/a-b?c=d . # tag 50 % $ 5"),
        ("l’année d’or, naïve—word 10–20", "l’année d ’or , naïve — word 10–20"),
        ("深度學習。deep\u3000नमस्ते", "深 度 學 習 。 deep नमस्ते"),
        ("", ""),
    ],
)
def test_words_are_parted_from_their_marks(text, expected):
    assert words(text) == expected.split()


@settings(deadline=None)  # the first call compiles
@given(st.text(alphabet="aB1 .,-'’()/:\n\u3000é漢—@_", max_size=60))
def test_words_lose_nothing_but_white_space(text):
    found = words(text)
    assert "".join(found) == "".join(text.split()) and all(found)
    facts = words_of([text])
    assert facts.lengths.tolist() == [len(word) for word in found]
    assert facts.counts[0, 2] == sum(any(map(str.isalpha, word)) for word in found)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("too short", "too_few_words"),
        ("a b c d " * 20, "words_too_short"),
        ("incomprehensibilities everywhere nevertheless " * 20, "words_too_long"),
        (ENGLISH + "# " * 12, "hash_signs"),
        (ENGLISH + "wait... " * 20, "ellipses"),
        ("\n".join(f"- {line}" for line in ENGLISH.split(".")[:4] * 3), "bullet_lines"),
        ("\n".join([ENGLISH] * 6 + ["and so on…"] * 4), "ellipsis_lines"),
        (ENGLISH + "1234 5678 " * 20, "words_without_letter"),
        ("Name Street Town County Country " * 12, "few_stop_words"),
    ],
)
def test_gopher_quality_drops(text, reason):
    assert isinstance(GopherQuality().apply(document(ENGLISH)), Document)
    assert GopherQuality().apply(document(text)).reason == reason


def test_gopher_quality_keeps_its_measures():
    scores = GopherQuality(language="en").apply(document("# Title\n\n" + ENGLISH)).scores
    assert scores["gopher_quality.stop_words"] == 7 and scores["gopher_quality.words"] == 65
    assert scores["gopher_quality.hash_signs"] == pytest.approx(1 / 74)
    assert scores["gopher_quality.words_with_letter"] == pytest.approx(65 / 74)
    relaxed = GopherQuality(symbols_are_words=False).apply(document("# Title\n\n" + ENGLISH)).scores
    assert relaxed["gopher_quality.words_with_letter"] == 1.0


HINDI = "यह भारतीय साहित्य की प्रसिद्ध कहानियों में से एक कहानी है और लेखक ने इसमें किसानों के जीवन का वर्णन किया है। "
CHINESE = "這是一個很長的故事，人們都說他不在家，也沒有人知道他去了哪裡。"


@pytest.mark.parametrize(("text", "language"), [(HINDI, "hi"), (HINDI, None), (CHINESE, "zh"), (CHINESE, None)])
def test_stop_words_are_those_of_the_language(text, language):
    assert isinstance(GopherQuality().apply(document(text * 5, language)), Document)
    dropped = GopherQuality().apply(document(text * 5, "en"))
    assert (dropped.reason, dropped.value) == ("few_stop_words", 0)
    assert "gopher_quality.stop_words" not in GopherQuality().apply(document(text * 5, "xx")).scores


def test_stop_words_of_ones_own():
    step = GopherQuality(stop_words={"xx": ("foo", "bar")})
    text = "the foo and the bar " * 20
    assert step.apply(document(text, "xx-Latn")).scores["gopher_quality.stop_words"] == 2
    lists = (("en", STOP_WORDS["en"]), ("xx", ("foo",)))
    assert count_stop_words(words_of([text, "foo"]), lists).tolist() == [[2, 1], [0, 1]]
    with pytest.raises(ValidationError, match="not one word"):
        GopherQuality(stop_words={"xx": ("two words",)})
    assert all(len(words_of([word]).hashes) == 1 for own in STOP_WORDS.values() for word in own)


def test_fineweb_rules():
    page = "\n".join([f"This is sentence number {number} of a page of text." for number in range(10)])
    scores = FineWeb().apply(document(page)).scores
    assert scores["fineweb.terminal_lines"] == 1 and scores["fineweb.duplicate_line_characters"] == 0
    assert scores["fineweb.newlines"] == pytest.approx(9 / 110) and scores["fineweb.short_lines"] == 0
    menu = "\n".join(f"entry number {number} of the whole long menu" for number in range(20))
    assert FineWeb().apply(document(menu)).reason == "few_terminal_lines"
    assert FineWeb().apply(document(page + "\n\n" + "yes.\n" * 40)).reason == "many_short_lines"
    assert FineWeb().apply(document(f"{page}\n{page}")).reason == "many_duplicate_line_characters"
    assert FineWeb(max_duplicate_line_characters=1).apply(document(page + "\n" * 60)).reason == "many_newlines"
    assert FineWeb().apply(document(CHINESE)).scores["fineweb.terminal_lines"] == 1


def test_lines_are_counted_as_they_look():
    lines = lines_of(["\n# a...\n  • b… \n\n- c.\nd。 \n"])
    assert (lines.num_lines[0], lines.num_newlines[0], lines.num_characters[0]) == (6, 6, 26)
    assert (lines.num_hash_signs[0], lines.num_ellipses[0], lines.num_open_ends[0]) == (1, 2, 2)
    assert lines.lengths.tolist() == [6, 7, 4, 3] and lines.breaks.tolist() == [1, 1, 2, 1]
    assert lines.flags.tolist() == [1 + 2 + 4, 1 + 4 + 8, 1 + 2 + 8, 1]


def test_repetition_can_be_counted_exactly_as_datatrove_does():
    spaced = "\n".join(f"line {number} of text that goes on\n " for number in range(9))

    def duplicate_lines(**settings):
        _, _, share, broken = GopherRepetition(**settings).rules(words_of([spaced]), lines_of([spaced]))[0]
        return share[0], broken[0]

    assert duplicate_lines() == (0.0, False)
    assert duplicate_lines(as_datatrove=True) == (8 / 18, True)
    once = GopherRepetition(as_datatrove=True).apply(document("just four words here"))
    assert once.scores["gopher_repetition.top_4_gram_characters"] == 1.0
