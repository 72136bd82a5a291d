"""The vocabulary report: what is counted, against what, and what follows."""

import json
from pathlib import Path

import pytest

from deepen.formats.architecture import architecture_from_config
from deepen.tokenize.config import TokenizeConfig
from deepen.tokenize.stage import tokenize
from deepen.tokenize.vocabulary.base_model import BaseModel
from deepen.tokenize.vocabulary.growth import Growth
from deepen.tokenize.vocabulary.report import EXPOSURES, Report, Sample, cost_of, measure, report_of
from deepen.tokenize.vocabulary.report_text import rendered
from tests.tokenize.conftest import NOTES, PAPERS

ENGLISH = tuple([*PAPERS[:2], *NOTES] * 4)
HINDI = tuple(["नदी सुबह से बढ़ रही थी और दोपहर तक सड़क पानी में थी।", "लोग नदी की ओर देख रहे थे।"] * 40)
CHINESE = tuple(["心脏把血液送到全身。心脏从不休息。", "血液把氧气送到大脑。"] * 20)
SHAPE = architecture_from_config(
    {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 300}
)


def report(base, *samples: Sample, **options) -> Report:
    return report_of(samples, base.path, **options)


def test_counts_of_a_sample_are_those_of_the_tokenizer(byte_level) -> None:
    base = BaseModel.read(byte_level.path / "tokenizer.json")
    fit = measure(base, Sample("notes", "domain", None, tuple(NOTES)))
    assert fit.tokens == sum(len(base.tokenizer.encode(text).ids) for text in NOTES)
    assert fit.words == fit.units == sum(len(text.split()) for text in NOTES)
    assert fit.unit == "word" and fit.byte_share == 0
    words = {word: len(base.tokenizer.encode(f"a {word}").ids) - 1 for text in NOTES for word in text.split()}
    split = sum(words[word] > 1 for text in NOTES for word in text.split())
    assert fit.continued_share == pytest.approx(split / fit.units)
    assert all(words[word] == tokens for word, tokens, _ in fit.fragmented)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece_like"])
def test_scripts_without_spaces_are_counted_by_characters(name: str, request) -> None:
    base = BaseModel.read(request.getfixturevalue(name).path / "tokenizer.json")
    fit = measure(base, Sample("chinese", "domain", None, CHINESE))
    assert fit.unit == "character"
    assert fit.byte_share > 0.9  # neither vocabulary has Chinese characters
    assert fit.per_word > fit.fertility > 2


def test_what_costs_twice_the_english_is_extended(byte_level) -> None:
    found = report(byte_level, Sample("hindi", "domain", None, HINDI), Sample("notes", "replay", None, ENGLISH))
    assert (found.english, found.poor_sources) == ("notes", ("hindi",))
    assert found.fits[0].premium == pytest.approx(found.fits[0].per_word / found.english_fertility)
    assert found.verdict == f"extend by {found.extend_by}" and found.extend_by > 0
    assert "hindi costs" in found.reason and list(found.gains.values()) == sorted(found.gains.values())


def test_english_is_kept(byte_level, monkeypatch) -> None:
    monkeypatch.setattr("deepen.tokenize.vocabulary.report.HIGH_FERTILITY", 9.0)  # 300 tokens hold little English
    found = report(byte_level, Sample("papers", "domain", "en", ENGLISH))
    assert (found.verdict, found.english, found.gains, found.cost) == ("keep", "papers", {}, {})


def test_without_english_the_built_in_text_is_named(byte_level) -> None:
    found = report(byte_level, Sample("hindi", "domain", "hi", HINDI))
    assert found.english == "a short built-in text"
    assert "in a short built-in text" in rendered(found.to_json())


def test_the_cost_of_rows_is_that_of_the_architecture(byte_level) -> None:
    found = report(byte_level, Sample("hindi", "domain", None, HINDI), shape=SHAPE, domain_bytes=10_000)
    rows = found.cost["rows"]
    assert found.cost["parameters"] == rows * 64 * 2  # an input and an output row each
    assert found.cost["tokens_saved"] == pytest.approx(
        10_000 / (found.fits[0].bytes / found.fits[0].tokens) * found.cost["saved_share"], rel=0.01
    )


def test_a_small_model_may_pay_more_for_rows_than_tokens_save(byte_level) -> None:
    tiny = architecture_from_config(
        {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    )
    growth = Growth(("x",), (("a", "b"),), saved=(10,), sample_tokens=1_000, uses=(10,))
    assert cost_of(growth, 1, None, 0)["break_even_tokens"] == 1_000 * EXPOSURES / 10 / 0.01
    cost = cost_of(growth, 1, tiny, 1_000)
    assert "break_even_tokens" not in cost and cost["flops_saved"] < 0
    written = report(byte_level, Sample("hindi", "domain", None, HINDI)).to_json()
    assert "costs more compute than it saves" in rendered(written | {"cost": cost})


def test_the_stage_writes_and_prints_it(make_job, byte_level, capsys) -> None:
    job = make_job("out", hindi=("domain", [list(HINDI)]), notes=("replay", [NOTES]))
    manifest = tokenize(TokenizeConfig(), job, base=byte_level)
    written = json.loads((job.out / "report.json").read_text())
    assert "report.json" in {file.path for file in manifest.files}
    assert [source["source"] for source in written["sources"]] == ["hindi", "notes"]
    assert f"verdict: {written['verdict']}" in capsys.readouterr().err


def test_a_vocabulary_that_is_no_bpe_has_no_report(make_job, word_level, capsys) -> None:
    job = make_job("out", notes=("domain", [["a page"]]))
    tokenize(TokenizeConfig(), job, base=word_level)
    assert not (job.out / "report.json").exists()
    assert "no vocabulary report: a WordLevel vocabulary" in capsys.readouterr().err


def test_the_sample_is_small_even_and_the_same(tmp_path: Path) -> None:
    from deepen.formats.documents.documents import Document, write_documents
    from deepen.tokenize.vocabulary.samples import sample_source

    documents = [Document(str(at), f"text {at} " * 9, "s", language="en" if at % 2 else "de") for at in range(4000)]
    write_documents(tmp_path / "s-00000.parquet", documents, tmp_path)
    samples = sample_source("s", "domain", [tmp_path / "s-00000.parquet"], most_bytes=20_000)
    assert [sample.language for sample in samples] == ["de", "en"]
    assert 15_000 < sum(len(text) for sample in samples for text in sample.texts) < 25_000
    assert samples == sample_source("s", "domain", [tmp_path / "s-00000.parquet"], most_bytes=20_000)
