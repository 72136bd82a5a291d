"""Only what is as it was written is taken over from an earlier result."""

from pathlib import Path

import pytest

from deepen.formats.files.atomic import entry_of, hash_file
from deepen.formats.manifest import Artifact, StageJob, finish_stage, open_artifact
from deepen.formats.taken_over import intact_files, take_over, take_over_file


@pytest.fixture
def earlier(tmp_path: Path) -> Artifact:
    out = tmp_path / "earlier"
    for name in ("a/1", "a/2", "b"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"contents")
    files = [entry_of(out / name, out) for name in ("a/1", "a/2", "b")]
    finish_stage(StageJob(out, "f"), stage="mix", format_number=1, config={}, files=files, counts={})
    found = open_artifact(out)
    assert found is not None
    return found


def test_wanted_files_are_linked_and_no_others(earlier: Artifact, tmp_path: Path) -> None:
    files = take_over(earlier, lambda name: name.startswith("a/"), tmp_path / "out")
    assert files is not None and [entry.path for entry in files] == ["a/1", "a/2"]
    assert all((tmp_path / "out" / entry.path).samefile(earlier.path / entry.path) for entry in files)
    assert not (tmp_path / "out" / "b").exists()
    assert take_over(earlier, lambda name: name == "c", tmp_path / "out") == ()


@pytest.mark.parametrize("change", [b"Contents", b"cut", None])
def test_with_one_damaged_file_none_is_taken_over(earlier: Artifact, tmp_path: Path, change: bytes | None) -> None:
    expected = hash_file(earlier.path / "a/2")
    (earlier.path / "a/2").unlink()
    if change is not None:
        (earlier.path / "a/2").write_bytes(change)
    assert take_over(earlier, lambda name: name.startswith("a/"), tmp_path / "out") is None
    assert not take_over_file(earlier.path / "a/2", expected, tmp_path / "out" / "a/2")
    assert not (tmp_path / "out").exists()
    assert intact_files(earlier, lambda name: name == "a/2") is None
    assert intact_files(earlier, lambda name: name in ("a/1", "b")) is not None
