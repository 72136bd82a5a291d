import pytest

from deepen.errors import DamageError, RunError
from deepen.formats.files.atomic import damage, entry_of, write_bytes, writing
from deepen.formats.manifest import (
    MANIFEST,
    UNFINISHED,
    InputEntry,
    StageJob,
    begin_stage,
    fingerprint,
    finish_stage,
    open_artifact,
    refer_to,
)
from deepen.formats.unchanged import check_unchanged
from deepen.settings import Settings


class Config(Settings):
    size: int = 3


def make(out, mark="f1"):
    job = StageJob(out=out, fingerprint=mark, raw_inputs={"base": InputEntry(path="x", fingerprint="b")})
    begin_stage(job, stage="mix", format_number=1, config=Config())
    assert (out / UNFINISHED).is_file()
    entry = write_bytes(out / "data.bin", b"hello")
    return finish_stage(job, stage="mix", format_number=1, config=Config(size=4), files=[entry], counts={"rows": 2})


def test_a_stage_is_finished_when_its_manifest_is_there(tmp_path):
    assert open_artifact(tmp_path / "mix") is None
    made = make(tmp_path / "mix")
    artifact = open_artifact(tmp_path / "mix")
    assert artifact is not None
    assert artifact.manifest == made
    assert artifact.counts == {"rows": 2}
    assert not (tmp_path / "mix" / UNFINISHED).exists()


def test_a_reference_leads_to_the_files_and_breaks_loudly(tmp_path):
    make(tmp_path / "a" / "mix")
    artifact = open_artifact(tmp_path / "a" / "mix")
    refer_to(tmp_path / "b" / "mix", artifact)
    assert open_artifact(tmp_path / "b" / "mix").path == (tmp_path / "a" / "mix").resolve()
    make(tmp_path / "a" / "mix", mark="f2")
    with pytest.raises(RunError, match="gone or was made anew"):
        open_artifact(tmp_path / "b" / "mix")


def test_a_manifest_that_is_no_manifest_is_a_users_error(tmp_path):
    (tmp_path / MANIFEST).write_text('{"stage": 3}')
    with pytest.raises(RunError, match="manifest.json` cannot be read"):
        open_artifact(tmp_path)


def test_fingerprints_depend_on_everything_but_defaults():
    mark = fingerprint("mix", 1, Config(), {"a": "1"})
    assert mark == fingerprint("mix", 1, Config(size=3), {"a": "1"})
    others = [
        ("cut", 1, Config(), {"a": "1"}),
        ("mix", 2, Config(), {"a": "1"}),
        ("mix", 1, Config(size=4), {"a": "1"}),
    ]
    others.append(("mix", 1, Config(), {"a": "2"}))
    assert len({mark, *(fingerprint(*other) for other in others)}) == 5


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), writing(path) as file:
        file.write(b"new")
        _ = 1 / 0
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["xxh3", "sha256"])
def test_one_flipped_byte_is_damage(tmp_path, kind):
    path = tmp_path / "file"
    with writing(path, kind) as file:
        file.write(b"some bytes")
    entry = file.entry("file")
    assert entry == entry_of(path, tmp_path, kind)
    assert damage(entry, tmp_path) is None
    path.write_bytes(b"some bytez")
    assert "hash differs" in damage(entry, tmp_path)
    path.write_bytes(b"short")
    assert "5 bytes" in damage(entry, tmp_path)
    path.unlink()
    assert "missing" in damage(entry, tmp_path)


@pytest.mark.parametrize("change", ["tokenizer/tokenizer.json", "shards/a.bin", "shards/a.idx"])
def test_an_artifact_that_was_changed_is_found_before_it_is_used(tmp_path, change):
    files = [write_bytes(tmp_path / name, b"contents") for name in ("shards/a.bin", "tokenizer/tokenizer.json")]
    names = ("shards/a.bin", "tokenizer/tokenizer.json")
    files = [entry.model_copy(update={"path": name}) for entry, name in zip(files, names, strict=True)]
    files.append(write_bytes(tmp_path / "shards/a.idx", b"index").model_copy(update={"path": "shards/a.idx"}))
    job = StageJob(tmp_path, "f")
    finish_stage(job, stage="tokenize", format_number=1, config={}, files=files, counts={})
    artifact = open_artifact(tmp_path)
    check_unchanged(artifact, "tokenizer/")
    (tmp_path / change).write_bytes({"tokenizer/tokenizer.json": b"Contents"}.get(change, b"cut"))
    with pytest.raises(DamageError, match=change) as caught:
        check_unchanged(artifact, "tokenizer/")
    assert "make it again" in caught.value.hint
