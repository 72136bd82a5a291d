"""Hostile files and failing libraries cost one named reject; the next file is read as if nothing had been."""

import pytest

from deepen.ingest.config import Extraction
from deepen.ingest.extract import isolation
from deepen.ingest.extract.isolation import extract_isolated
from tests.ingest.made_files import hanging_pdf, pdf_of

PDF = "deepen.ingest.extract.pdf:extract"


NEVER = 600.0
"""A limit of time that nothing here reaches, so that another one decides."""


def ask(function, data=b"", seconds=NEVER, memory_MB=500):
    name = function if ":" in function else f"tests.ingest.extract.misbehaving:{function}"
    return extract_isolated(name, data, {"passwords": []}, Extraction(seconds=seconds, memory_MB=memory_MB))


@pytest.mark.parametrize(
    ("seconds", "memory_MB", "reason"), [(2, 8000, "extraction_timeout"), (NEVER, 300, "extraction_memory")]
)
def test_a_pdf_made_to_hang_or_explode_is_a_reject(seconds, memory_MB, reason):
    assert ask(PDF, hanging_pdf(), seconds, memory_MB)["reason"] == reason
    assert ask(PDF, pdf_of([["fine"]]), seconds, memory_MB)["text"].strip() == "fine"


def test_a_file_that_waits_instead_of_computing_is_ended_by_the_clock(monkeypatch):
    monkeypatch.setattr(isolation, "_CLOCK_PER_CPU_SECOND", 1 / NEVER)
    answer = ask("wait")
    assert (answer["reason"], answer["detail"]) == ("extraction_timeout", "no answer within 1 seconds")


@pytest.mark.parametrize(
    ("function", "reason"), [("grow", "extraction_memory"), ("die", "extraction_crash"), ("fail", "extraction_failed")]
)
def test_what_libraries_do_is_named(function, reason):
    assert ask(function)["reason"] == reason
    assert ask("pid")["text"].isdigit()


def test_a_file_larger_than_the_memory_is_named():
    assert ask("pid", bytes(150_000_000), memory_MB=100)["reason"] == "extraction_memory"


def test_a_file_is_judged_alone():
    assert ask("keep", b"220")["text"] == "kept"
    assert ask("keep", b"320")["text"] == "kept"  # not after the other in 500 MB
    assert ask("keep", b"520")["reason"] == "extraction_memory"


def test_one_process_serves_many_files():
    assert len({ask("pid")["text"] for _ in range(3)}) == 1
    first = ask("pid")["text"]
    ask("die")
    assert ask("pid")["text"] != first


def test_many_small_files_are_cheap(monkeypatch):
    """No process is started for them, which takes a hundred times as long as reading one."""
    data = pdf_of([["one line"]])
    ask(PDF, data)
    monkeypatch.delattr(isolation.subprocess, "Popen")
    assert all(ask(PDF, data)["text"].strip() == "one line" for _ in range(100))
