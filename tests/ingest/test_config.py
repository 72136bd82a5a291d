"""Settings, problems found before any work, and the identity of a source."""

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from deepen.ingest.config import Extraction, IngestConfig, Source, problems
from deepen.ingest.files import list_files
from deepen.ingest.read.documents import reading
from deepen.ingest.stage import source_fingerprint


def config(*sources):
    complete = [{"name": f"s{number}", "role": "domain", **source} for number, source in enumerate(sources)]
    return IngestConfig.model_validate({"sources": complete})


@pytest.mark.parametrize(
    "bad", [{"name": "Big"}, {"name": "a-b"}, {"role": "other"}, {"limit": 0}, {"format": "doc"}, {"colour": "red"}]
)
def test_wrong_values_are_refused(bad):
    with pytest.raises(ValidationError):
        config({"path": "x", **bad})


def test_names_must_differ():
    with pytest.raises(ValidationError, match="more than once: a"):
        config({"name": "a", "path": "x"}, {"name": "a", "path": "y"})
    with pytest.raises(ValidationError):
        config()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (7, "7 documents"),
        ("2k documents", "2000 documents"),
        ("1.5 MB", "1500000 bytes"),
        ("2B tokens", "2000000000 tokens"),
        ("12 bytes", "12 bytes"),
        ("1 document", "1 documents"),
    ],
)
def test_limit_takes_documents_bytes_and_tokens(written, read):
    source = config({"path": "x", "limit": written}).sources[0]
    assert str(source.limit) == read
    assert config({"path": "x", "limit": read}).sources[0] == source


@pytest.mark.parametrize("written", [0, -1, True, "0 MB", "5 steps", "2 MiB", "10%", "0.5 documents", "1 MB tokens"])
def test_other_limits_are_refused(written):
    with pytest.raises(ValidationError):
        config({"path": "x", "limit": written})


def test_problems_name_the_source_the_key_and_a_remedy(tmp_path):
    (tmp_path / "a.doc").write_bytes(b"x")
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    paths = ["missing.txt", "*.jsonl", "empty", "a.doc", "b.txt", "nosuch://bucket/x"]
    sources = [{"path": path if "://" in path else str(tmp_path / path)} for path in paths]
    found = problems(config(*sources))
    assert [problem.path for problem in found] == [f"ingest.sources[{number}].path" for number in (0, 1, 2, 3, 5)]
    assert all(problem.remedy and "source `s" in problem.message for problem in found)


def test_a_password_may_come_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    source = {"path": str(tmp_path / "a.txt"), "passwords": ["$DEEPEN_SECRET", "plain"]}
    (problem,) = problems(config(source))
    assert problem.path == "ingest.sources[0].passwords" and "DEEPEN_SECRET" in problem.message
    monkeypatch.setenv("DEEPEN_SECRET", "word")
    assert problems(config(source)) == []
    assert reading(config(source).sources[0], Extraction()).passwords == ("word", "plain")


def test_links_in_a_circle_end_and_dangling_links_stay_visible(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in/a.txt").write_text("x")
    assert [file.location for file in list_files(str(tmp_path / "in"))] == ["a.txt", "gone.txt"]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in" / name).write_text(name)
        os.utime(tmp_path / "in" / name, (1e9, 1e9))
    return Source(name="s", role="domain", path=str(tmp_path / "in"))


def test_identity_follows_content_and_relative_path_only(tmp_path, source):
    before = source_fingerprint(source, tmp_path / "cache.json")
    (tmp_path / "in").rename(tmp_path / "moved")
    moved = source.model_copy(update={"path": str(tmp_path / "moved")})
    assert source_fingerprint(moved, tmp_path / "cache.json") == before
    (tmp_path / "moved/a.txt").write_text("A.txt")
    changed = source_fingerprint(moved, tmp_path / "cache.json")
    (tmp_path / "moved/b.txt").rename(tmp_path / "moved/c.txt")
    assert len({before, changed, source_fingerprint(moved, tmp_path / "cache.json")}) == 3


def test_unchanged_files_are_not_read_again(tmp_path, source):
    cache = tmp_path / "cache.json"
    before = source_fingerprint(source, cache)
    (tmp_path / "in/a.txt").write_text("A.txt")
    os.utime(tmp_path / "in/a.txt", (1e9, 1e9))  # same size and time: the cache is believed
    assert source_fingerprint(source, cache) == before
    cache.write_text("{ damaged")
    assert source_fingerprint(source, cache) != before


def test_importing_the_stage_loads_no_torch():
    code = "import sys, deepen.ingest.stage; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
