"""The stage: counts that balance, a split without leaks, the same bytes however it was made."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepen.curate.batch.texts import texts_of
from deepen.curate.duplicates.shingles import sign, similar
from deepen.errors import RunError, SourceError
from deepen.formats.files.atomic import damage
from deepen.formats.manifest import read_manifest

FEW = {"at_least": 0, "share": 0.05}


@pytest.fixture
def corpus(ingested, prose):
    """Three sources in several parts, with copies and near copies within and across them, and some junk."""
    generator = random.Random(5)
    web = [prose(seed) for seed in range(120)]
    web += [f"{text} and more" for text in generator.sample(web, 20)] + generator.sample(web, 10) + ["too short"] * 7
    papers = [prose(seed) for seed in range(200, 300)] + [f"so {text}" for text in web[:15]] + web[20:30]
    papers += ["\n".join([prose(7), *["again and again"] * 30])]
    wiki = [prose(seed) for seed in range(400, 440)] + web[50:55] + papers[60:65]
    for texts in (web, papers, wiki):
        generator.shuffle(texts)
    return ingested({"papers": ("domain", papers), "web": ("replay", [web[:70], web[70:]]), "wiki": ("watch", wiki)})


def balanced(count):
    return count["documents_in"] == count["documents_kept"] + sum(count["dropped"].values()) + count["held_out"]


def test_counts_balance_and_agree_with_the_files(tmp_path, run, corpus, texts, drops):
    counts = run(corpus, held_out=FEW)
    manifest = read_manifest(tmp_path / "out")
    assert [damage(entry, tmp_path / "out") for entry in manifest.files] == [None] * len(manifest.files)
    for name, count in counts.items():
        kept, held_out = texts("documents", name), texts("held_out", name)
        assert balanced(count) and count["licence"] == "CC0"
        assert (len(kept), len(held_out)) == (count["documents_kept"], count["held_out"])
        assert sum(len(text.encode()) for text in kept) == count["bytes_kept"]
        assert sum(len(text.encode()) for text in held_out) == count["held_out_bytes"]
        rows = drops(name)
        reasons = {reason: sum(row["reason"] == reason for row in rows) for reason in count["dropped"]}
        assert reasons == count["dropped"]
    on_disk = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert on_disk == {entry.path for entry in manifest.files} | {"manifest.json"}


def test_no_held_out_text_is_trained_on(run, corpus, texts):
    run(corpus, held_out={"at_least": 0, "share": 0.1})
    held_out = [text for name in ("papers", "web", "wiki") for text in texts("held_out", name)]
    kept = [text for name in ("papers", "web") for text in texts("documents", name)]
    signatures = sign(texts_of(held_out + kept))
    ends = signatures.sizes.cumsum()
    sets = [signatures.shingles[end - size : end] for end, size in zip(ends, signatures.sizes, strict=True)]
    most = max(similar(one, other, 0.0) for one in sets[: len(held_out)] for other in sets[len(held_out) :])
    assert len(held_out) > 30 and most < 0.8


def test_watch_sources_are_scored_and_never_trained(tmp_path, run, corpus, texts, drops):
    counts = run(corpus, held_out=FEW)["wiki"]
    assert counts["documents_kept"] == 0 and not list((tmp_path / "out/documents").glob("wiki*"))
    assert counts["held_out"] == 50 - counts["dropped"].get("held_out_duplicate", 0)
    capped = run(corpus, out="capped", held_out={"cap": 1000, **FEW})["wiki"]
    assert 0 < capped["held_out_bytes"] <= 4000 and capped["dropped"]["beyond_held_out_cap"] > 20
    assert not set(texts("held_out", "wiki")) & set(texts("documents", "web") + texts("documents", "papers"))


def test_the_first_copy_in_recipe_order_is_kept(run, ingested, prose, drops):
    texts = [prose(seed) for seed in range(20)]
    artifact = ingested({"a": ("domain", [*texts[:10], texts[3]]), "b": ("replay", texts[5:])})
    counts = run(artifact, held_out={"share": 0, "at_least": 0})
    assert counts["a"]["dropped"] == {"exact_duplicate": 1} and counts["b"]["dropped"] == {"exact_duplicate": 5}
    assert [row["text"] for row in drops("b")] == [text[:200] for text in texts[5:10]]


def test_a_small_source_loses_at_most_a_tenth(run, ingested, prose, capsys):
    small, tiny = [prose(seed) for seed in range(37)], [prose(seed) for seed in range(100, 105)]
    counts = run(ingested({"small": ("domain", small), "tiny": ("replay", tiny)}))
    assert (counts["small"]["held_out"], counts["tiny"]["held_out"]) == (3, 0)
    assert "`tiny`" in capsys.readouterr().err


def test_a_cluster_too_large_to_lose_stays_in_training(run, ingested, prose):
    template = prose(1, 200)
    texts = [f"{template} number {number}" for number in range(60)] + [prose(seed) for seed in range(2, 42)]
    count = run(ingested({"a": ("domain", texts)}))["a"]
    assert (count["held_out"], count["dropped"]) == (10, {})


def test_the_choice_does_not_depend_on_order(run, ingested, prose, texts):
    corpus = [prose(seed) for seed in range(100)]
    run(ingested({"a": ("domain", corpus)}), held_out=FEW)
    run(ingested({"a": ("domain", corpus[::-1])}, name="other"), out="reversed", held_out=FEW)
    assert sorted(texts("held_out", "a")) == sorted(texts("held_out", "a", out="reversed"))
    assert len(texts("held_out", "a")) == 5


def test_a_later_run_may_hold_out_the_same(tmp_path, run, ingested, prose, texts):
    corpus = [prose(seed) for seed in range(100)]
    run(ingested({"a": ("domain", corpus)}), out="first/curate", held_out=FEW)
    grown = [f"{text} and one" for text in corpus] + corpus + [prose(seed) for seed in range(500, 700)]
    artifact = ingested(
        {"a": ("domain", grown), "b": ("replay", [prose(seed) for seed in range(800, 900)])}, name="grown"
    )
    counts = run(artifact, held_out={"from": str(tmp_path / "first"), **FEW})
    assert sorted(texts("held_out", "a")) == sorted(texts("held_out", "a", out="first/curate"))
    assert counts["a"]["dropped"]["held_out_duplicate"] == 5 and counts["b"]["held_out"] == 5


def test_a_run_to_hold_out_from_must_be_curated(tmp_path, run, ingested, prose):
    with pytest.raises(RunError, match="no finished curate"):
        run(ingested({"a": ("domain", [prose(1)])}), held_out={"from": str(tmp_path / "nowhere")})


def test_nothing_left_is_an_error_with_the_reasons(tmp_path, run, ingested, prose):
    artifact = ingested({"good": ("domain", [prose(1)]), "bad": ("replay", ["short", "also short"])})
    with pytest.raises(SourceError, match=r"`bad`.*2 documents\n  too_short +2") as caught:
        run(artifact)
    assert "`good`" not in str(caught.value) and not (tmp_path / "out/manifest.json").exists()


def test_scores_and_origin_stay_with_the_documents(tmp_path, run, ingested, prose):
    from deepen.formats.documents.documents import content_hash, document_id, read_documents

    run(ingested({"a": ("domain", [prose(1) + " cafe\u0301"])}))
    (document,) = read_documents(tmp_path / "out/documents/a-00000.parquet")
    assert document.id == document_id("a", "0:0") and document.content_hash == content_hash(document.text)
    assert document.text.endswith("café") and document.scores["length.characters"] == len(document.text)


REASONS = ("near_duplicate", "exact_duplicate", "held_out_duplicate")
EVERYTHING = {"steps": ["normalize", "length", "gopher_repetition", "exact_duplicates", "near_duplicates"]}


def test_any_number_of_workers_gives_the_same_bytes(run, corpus, same_bytes, monkeypatch):
    run(corpus, out="one", **EVERYTHING)
    monkeypatch.setattr("deepen.curate.duplicates.pairs._BANDS_TOGETHER_UP_TO", 0)
    run(corpus, out="two", workers=2, **EVERYTHING)
    assert same_bytes("one", "two")


def test_drops_name_the_document_that_stays(tmp_path, run, corpus, drops):
    from deepen.formats.documents.documents import read_documents

    counts = run(corpus, held_out=FEW, **EVERYTHING)
    assert counts["web"]["dropped"]["near_duplicate"] > 20 and "near_duplicate" not in counts["papers"]["dropped"]
    files = [*(tmp_path / "out/documents").iterdir(), *(tmp_path / "out/held_out").iterdir()]
    left = {document.id: document.text for file in files for document in read_documents(file)}
    rows = {reason: [row for row in drops() if row["reason"] == reason] for reason in REASONS}
    assert min(map(len, rows.values())) >= 15
    for reason in ("near_duplicate", "held_out_duplicate"):
        assert all(row["detail"] in left and row["value"] >= 0.8 for row in rows[reason])
    assert all(row["detail"] in left for row in rows["exact_duplicate"] if row["detail"] not in near_copies(drops()))
    assert all(row["detail"] == "" for row in drops() if row["reason"] == "too_short")


def near_copies(rows):
    return {row["id"] for row in rows if row["reason"] == "near_duplicate"}


@pytest.mark.parametrize("lost", ["first/00001", "first/*", "pairs/*", "second/00002", "second/*", "*/00000"])
def test_a_rerun_after_a_kill_gives_the_same_bytes(tmp_path, run, corpus, same_bytes, monkeypatch, lost):
    run(corpus, out="whole", held_out=FEW)
    with monkeypatch.context() as patch:
        patch.setattr("deepen.curate.stage.clear_ledger", lambda ledger: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus, out="killed", held_out=FEW)
    for record in (tmp_path / "killed/ledger").glob(f"{lost}.json"):
        record.unlink()
    (tmp_path / "killed/documents/web-00001.parquet.tmp").write_bytes(b"half")
    (tmp_path / "killed/partial/pairs-00-00000.npy.tmp").write_bytes(b"half")
    run(corpus, out="killed", held_out=FEW)
    (tmp_path / "killed/documents/web-00001.parquet.tmp").unlink(missing_ok=True)
    assert same_bytes("whole", "killed")


PLUG = """
from typing import Literal
from deepen.curate.step import DocumentStep

class Shout(DocumentStep):
    '''Capitals.'''
    use: Literal["shouting:Shout"] = "shouting:Shout"
    def apply(self, document):
        return type(document)(**{**vars(document), "text": document.text.upper()})
"""


def test_anyone_may_bring_a_step(tmp_path, run, ingested, prose, texts, monkeypatch):
    (tmp_path / "shouting.py").write_text(PLUG)
    monkeypatch.syspath_prepend(tmp_path)
    run(ingested({"a": ("domain", [prose(1), prose(1).upper()])}), steps=["shouting:Shout", "exact_duplicates"])
    assert texts("documents", "a") == [prose(1).upper()]


def test_importing_the_stage_loads_neither_torch_nor_numba():
    names = "('torch', 'transformers', 'numba', 'ftfy')"
    code = f"import sys, deepen.curate.config, deepen.curate.stage; sys.exit(any(n in sys.modules for n in {names}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif("DEEPEN_TEST_DATA" not in os.environ, reason="needs real text")
# Half of the Hindi set are command pages of three lines that name the command twice, which the repetition rules drop
# since marks count as words.
@pytest.mark.parametrize(
    ("name", "least"), [("hindi_modern_small", 0.65), ("web_mix_small", 0.7), ("chinese_wiki_sentences", 0.7)]
)
def test_real_text_survives(tmp_path, run, texts, name, least):
    from deepen.formats.manifest import StageJob, open_artifact
    from deepen.ingest.config import IngestConfig
    from deepen.ingest.stage import ingest

    source = {"name": "s", "role": "domain", "path": f"{os.environ['DEEPEN_TEST_DATA']}/{name}/*.jsonl*"}
    ingest(IngestConfig.model_validate({"sources": [source]}), StageJob(tmp_path / "ingest", "f"))
    count = run(
        open_artifact(tmp_path / "ingest"), steps=["normalize", {"use": "length", "min": 20}, "gopher_repetition"]
    )
    assert balanced(count["s"]) and count["s"]["documents_kept"] > least * count["s"]["documents_in"]
    shutil.rmtree(Path(tmp_path / "ingest"))
