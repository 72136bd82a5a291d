"""Sources at an address: pinned, fetched once, read offline after that; a change is noticed and named."""

import fnmatch
import importlib.util
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from deepen.errors import OfflineError, SourceError
from deepen.ingest.config import IngestConfig, problems
from deepen.ingest.files import list_files
from deepen.workflow.inputs.pins import Pins
from deepen.workflow.inputs.sources import resolve_sources


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A store with three files; the cache is the test's own."""
    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for name in ("a.txt", "deep/b.txt", ".hidden.txt"):
        memory.pipe(f"/bucket/{name}", name.encode())
    yield memory
    memory.rm("/bucket", recursive=True)


def resolve(address, tmp_path, *, offline=False):
    config = IngestConfig.model_validate({"sources": [{"name": "s", "role": "domain", "path": address}]})
    return resolve_sources(config, Pins(tmp_path / "pins.json", offline=offline)).sources[0].path


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("pattern", "expected"), [("", ["a.txt", "deep/b.txt"]), ("/**/*.txt", ["a.txt", "deep/b.txt"]), ("/*", ["a.txt"])]
)
def test_folders_and_globs(store, tmp_path, pattern, expected):
    assert names(resolve(f"memory://bucket{pattern}", tmp_path)) == expected


def test_what_is_pinned_is_read_without_asking_again(store, tmp_path):
    path = resolve("memory://bucket/a.txt", tmp_path)
    assert path.endswith("/a.txt")
    store.pipe("/bucket/a.txt", b"something else")
    assert resolve("memory://bucket/a.txt", tmp_path, offline=True) == path
    assert Path(path).read_text() == "a.txt"


def test_a_change_under_a_pin_is_named(store, tmp_path, monkeypatch):
    resolve("memory://bucket", tmp_path)
    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path / "empty"))
    store.pipe("/bucket/deep/b.txt", b"something else")
    with pytest.raises(SourceError, match=r"deep/b\.txt"):
        resolve("memory://bucket", tmp_path)


def test_offline_and_missing_files_are_clear(store, tmp_path):
    with pytest.raises(OfflineError):
        resolve("memory://bucket", tmp_path, offline=True)
    with pytest.raises(SourceError, match="cannot be fetched"):
        resolve("memory://bucket/nothing.txt", tmp_path)
    with pytest.raises(SourceError, match="names no file"):
        resolve("memory://bucket/*.pdf", tmp_path)


def test_unknown_stores_are_problems_of_the_recipe():
    sources = [{"name": f"s{n}", "role": "domain", "path": p} for n, p in enumerate(["memory://x", "nosuch://x"])]
    (problem,) = problems(IngestConfig.model_validate({"sources": sources}))
    assert problem.path == "ingest.sources[1].path"


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="needs aiohttp")
def test_a_file_on_the_web(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.txt").write_text("from the web")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    handler.log_message = None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = resolve(f"http://127.0.0.1:{server.server_port}/a.txt", tmp_path)
        server.shutdown()
    assert Path(path).read_text() == "from the web"


class LocalHub(Pins):
    """A hub whose repositories are folders; a snapshot holds what the patterns ask for."""

    def snapshot(self, repository, *, kind, patterns):
        source, target = self._path.parent / repository, self._path.parent / "snapshot"
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / name)
        return target, "commit"


@pytest.mark.parametrize(
    ("files", "choice", "expected"),
    [
        (["data/train-0.parquet", "data/test-0.parquet"], {"split": "train"}, ["train-0.parquet"]),
        (["train.csv", "training.csv", "test.csv"], {"split": "train"}, ["train.csv"]),
        (
            ["de/train/1.txt", "de/train/2.txt", "en/train/1.txt"],
            {"subset": "de", "split": "train"},
            ["1.txt", "2.txt"],
        ),
        (["de/a.txt", "en/b.txt"], {"subset": "en"}, ["b.txt"]),
    ],
)
def test_subset_and_split_of_a_hub_data_set(tmp_path, files, choice, expected):
    for name in files:
        (tmp_path / "o/n" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "o/n" / name).write_text("x")
    source = {"name": "s", "role": "domain", "path": "hf://o/n", **choice}
    config = IngestConfig.model_validate({"sources": [source]})
    assert problems(config) == []
    resolved = resolve_sources(config, LocalHub(tmp_path / "pins.json", offline=False)).sources[0]
    assert [Path(file.path).name for file in list_files(resolved.path)] == expected
    assert problems(resolved_config(resolved)) == []


def resolved_config(source):
    return IngestConfig(sources=(source,))


def test_a_split_that_is_not_there_is_named(tmp_path):
    (tmp_path / "o/n").mkdir(parents=True)
    source = {"name": "s", "role": "domain", "path": "hf://o/n", "split": "dev"}
    with pytest.raises(SourceError, match="split `dev`"):
        resolve_sources(IngestConfig.model_validate({"sources": [source]}), LocalHub(tmp_path / "p", offline=False))
    (problem,) = problems(IngestConfig.model_validate({"sources": [{**source, "path": "data/x"}]}))
    assert "subset" in problem.message


def limited(tmp_path, limit="2 documents", *, offline=False):
    source = {"name": "s", "role": "domain", "path": "memory://bucket/**/*.txt", "limit": limit}
    config = IngestConfig.model_validate({"sources": [source]})
    return resolve_sources(config, Pins(tmp_path / "pins.json", offline=offline)).sources[0].path


@pytest.fixture
def asked(store, monkeypatch):
    """What is fetched from a store of three files."""
    store.pipe("/bucket/z.txt", b"the last")
    fetched, get_file = [], type(store).get_file
    monkeypatch.setattr(
        type(store), "get_file", lambda self, path, *rest, **more: fetched.append(path) or get_file(self, path, *rest)
    )
    return fetched


def test_a_limited_source_fetches_the_first_files(asked, store, tmp_path):
    path = limited(tmp_path)
    assert names(path) == ["a.txt", "deep/b.txt"]
    assert asked == ["/bucket/a.txt", "/bucket/deep/b.txt"]
    store.pipe("/bucket/0.txt", b"comes before")  # pinned is pinned
    assert names(limited(tmp_path, offline=True)) == ["a.txt", "deep/b.txt"]


def test_another_limit_takes_other_files_and_notices_changes(asked, store, tmp_path):
    limited(tmp_path)
    assert len(names(limited(tmp_path, "20 bytes"))) == 3
    assert len(names(limited(tmp_path, "1k tokens"))) == 3
    store.pipe("/bucket/deep/b.txt", b"something else")
    with pytest.raises(SourceError, match=r"deep/b\.txt"):
        limited(tmp_path, "1 documents")
    with pytest.raises(OfflineError):
        limited(tmp_path, "1 documents", offline=True)
