import os

import pytest

from deepen.errors import DamageError
from deepen.formats.files.json_text import read_model, read_object
from deepen.formats.manifest import InputEntry

DAMAGED = [
    b"",
    b"\0" * 50,
    b"\xff\xfe{}",
    b"[1]",
    b"{",
    b'{"path": ' + b"[" * 100_000,
    b'{"path": ' + b"9" * 5_000 + b"}",
]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    for read in (lambda: read_object(path, keys=["fingerprint"]), lambda: read_model(path, InputEntry)):
        with pytest.raises(DamageError, match="x.json") as caught:
            read()
        assert caught.value.hint


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "x.json")
    for read in (lambda: read_object(tmp_path / "x.json"), lambda: read_model(tmp_path / "x.json", InputEntry)):
        with pytest.raises(DamageError, match="not a file"):
            read()
