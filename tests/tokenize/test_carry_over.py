"""A source added to a finished run: the others are taken over, and every byte is as in a fresh run."""

from dataclasses import replace

import pytest

from deepen.formats.manifest import open_artifact
from deepen.tokenize import parts
from deepen.tokenize.config import TokenizeConfig
from deepen.tokenize.stage import tokenize
from tests.tokenize.conftest import NOTES, PAPERS
from tests.tokenize.test_stage import files

KEEP = TokenizeConfig()
IDENTITY = {"tokenize": {}}


@pytest.fixture
def encoded(monkeypatch):
    """Names of the document files that are really encoded."""
    seen = []
    encode = parts.encode_part
    monkeypatch.setattr(parts, "encode_part", lambda part: seen.append(part.documents.stem) or encode(part))
    return seen


def with_hashes(job):
    """The job, with the hashes of its documents in the manifest of curate, as curate writes them."""
    from deepen.formats.files.atomic import entry_of

    curate = job.inputs["curate"]
    entries = tuple(entry_of(path, curate.path) for path in sorted(curate.path.rglob("*.parquet")))
    curate = replace(curate, manifest=curate.manifest.model_copy(update={"files": entries}))
    return replace(job, inputs={"curate": curate}, identity=IDENTITY)


def test_only_the_new_source_is_encoded_and_bytes_equal_a_fresh_run(make_job, byte_level, encoded):
    first = with_hashes(make_job("first", papers=("domain", [PAPERS[:2], PAPERS[2:]])))
    tokenize(KEEP, first, base=byte_level)
    both = with_hashes(make_job("both", papers=("domain", [PAPERS[:2], PAPERS[2:]]), notes=("replay", [NOTES])))
    encoded.clear()
    tokenize(KEEP, replace(both, previous=open_artifact(first.out)), base=byte_level)
    assert encoded == ["notes-00000"]
    fresh = replace(both, out=both.out.with_name("fresh"))
    tokenize(KEEP, fresh, base=byte_level)
    assert files(both.out) == files(fresh.out)
    assert open_artifact(both.out).counts == open_artifact(fresh.out).counts


@pytest.mark.parametrize("change", ["documents", "tokenizer", "damage"])
def test_what_changed_is_encoded_again(make_job, byte_level, sentencepiece_like, encoded, change):
    first = with_hashes(make_job("first", papers=("domain", [PAPERS[:2]])))
    tokenize(KEEP, first, base=byte_level)
    texts = ["other words"] if change == "documents" else PAPERS[:2]
    again = with_hashes(make_job("again", papers=("domain", [texts])))
    if change == "damage":
        shard = first.out / "shards" / "papers.bin"
        shard.write_bytes(bytes(shard.stat().st_size))
    encoded.clear()
    base = sentencepiece_like if change == "tokenizer" else byte_level
    tokenize(KEEP, replace(again, previous=open_artifact(first.out)), base=base)
    assert encoded == ["papers-00000"]
