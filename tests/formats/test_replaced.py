"""Deleting and replacing, killed at any moment: the old, the new, or nothing, and never a part that looks whole."""

import shutil
from contextlib import suppress

import pytest

from deepen.formats import replaced
from deepen.formats.files import atomic
from deepen.formats.files.atomic import link_or_copy
from deepen.formats.manifest import MANIFEST, StageJob, finish_stage, open_artifact
from deepen.formats.replaced import put_in_place, recover_swap, remove_directory, sweep


class KilledError(Exception):
    """Stands for SIGKILL: nothing after it happens."""


def make(out, mark):
    out.mkdir(parents=True)
    files = [atomic.write_bytes(out / name, mark.encode()) for name in ("a.bin", "b.bin", "z.bin")]
    finish_stage(StageJob(out, mark), stage="mix", format_number=1, config={}, files=files, counts={})


def whole(directory):
    """The fingerprint of the finished artifact there, all files included; None where nothing seems finished."""
    found = open_artifact(directory) if directory.exists() else None
    if found is None:
        return None
    assert all((directory / entry.path).is_file() for entry in found.manifest.files), f"{directory} only looks finished"
    return found.fingerprint


@pytest.fixture
def killed_at(monkeypatch):
    """Let the n-th change of the file system (renames, each half of a deletion) be the last one."""

    def arm(number):
        left = [number]

        def step():
            left[0] -= 1
            if left[0] < 0:
                raise KilledError

        rename, rmtree = type(replaced.Path()).rename, shutil.rmtree

        def half_deleted(path, **options):
            if not path.exists():
                return
            step()
            for file in sorted(path.iterdir())[:2]:
                if file.name != MANIFEST:  # so that what is left still has one
                    file.unlink()
            step()
            rmtree(path, **options)

        monkeypatch.setattr(replaced.shutil, "rmtree", half_deleted)
        monkeypatch.setattr(type(replaced.Path()), "rename", lambda self, to: (step(), rename(self, to))[1])

    yield arm


@pytest.mark.parametrize("number", range(5))
def test_a_removal_that_is_killed_leaves_all_or_nothing(tmp_path, killed_at, monkeypatch, number):
    stage = tmp_path / "run" / "mix"
    make(stage, "old")
    killed_at(number)
    with suppress(KilledError):
        remove_directory(stage)
    monkeypatch.undo()
    assert whole(stage) in (("old",) if number == 0 else (None,))
    sweep(stage.parent)
    assert [path.name for path in stage.parent.iterdir()] == (["mix"] if number == 0 else [])


@pytest.mark.parametrize("number", range(8))
def test_a_swap_that_is_killed_leaves_the_old_or_the_new(tmp_path, killed_at, monkeypatch, number):
    stage = tmp_path / "run" / "mix"
    make(stage, "old")
    make(stage.with_name("mix.redo"), "new")
    killed_at(number)
    with suppress(KilledError):
        put_in_place(stage, stage.with_name("mix.redo"))
    monkeypatch.undo()
    assert whole(stage) in ("old", "new", None)
    sweep(stage.parent)
    recover_swap(stage)
    assert whole(stage) == ("old" if number == 0 else "new")
    assert {path.name for path in stage.parent.iterdir()} <= {"mix", "mix.redo"}


def test_a_link_and_a_copy_are_on_the_disk_before_they_are_relied_on(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"contents")
    synced = []
    monkeypatch.setattr(atomic, "sync_file", lambda path: synced.append(path.name))
    link_or_copy(tmp_path / "a", tmp_path / "to" / "linked")
    monkeypatch.setattr(atomic.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    link_or_copy(tmp_path / "a", tmp_path / "to" / "copied")
    assert synced == ["linked.tmp", "to", "copied.tmp", "to"]
    assert (tmp_path / "to" / "copied").read_bytes() == (tmp_path / "to" / "linked").read_bytes() == b"contents"


def test_linking_twice_leaves_no_temporary_file(tmp_path):
    (tmp_path / "a").write_bytes(b"contents")
    for _ in range(2):
        link_or_copy(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
