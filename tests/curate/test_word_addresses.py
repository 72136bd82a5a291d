"""Addresses inside long stretches without white space: found as by looking at each place anew, in linear time."""

import faulthandler

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepen.curate.batch.text_facts import words_of
from deepen.curate.kernels.word_marks import _address_end, _address_in, _is_host, new_stretch

PIECES = ["a", "b.de", "me@x.org", "@", ",", ":", "/", "://", ".", "-", "'", " ", "\u00e9", "\u201c", "9", "A", ")"]


def by_definition(text, start, position):
    """From ``start`` to the end of the stretch a host, or an @ before one."""
    end = _address_end(text, position)
    hosts = [start, *(place + 1 for place in range(start, end) if text[place] == ord("@"))]
    return end if any(_is_host(text, host, end) for host in hosts) else -1


@given(st.lists(st.sampled_from(PIECES), max_size=25))
def test_what_is_remembered_changes_no_answer(pieces):
    text = np.frombuffer("".join(pieces).encode(), dtype=np.uint8)
    stretch, start = new_stretch(), 0
    for position in range(1, len(text)):
        if text[position] < 0x80 and chr(text[position]) in ",:/.-@)" and text[position - 1] < 0x80:
            assert _address_in(text, start, position, stretch) == by_definition(text, start, position)
            start = position + 1  # as where a word is cut
        elif text[position] == 0x20:
            start = position + 1


@pytest.mark.parametrize("piece", ["a,", "a:b/", "x@y,", "://a", "a.b@", "b.de,", "a-"])
def test_a_megabyte_without_a_space_does_not_hang(piece):
    words_of(["warm up a,b"])
    faulthandler.dump_traceback_later(60, exit=True)  # compiled code does not listen to alarms; quadratic takes hours
    try:
        assert int(words_of([piece * (1_000_000 // len(piece))]).lengths.sum()) == 1_000_000 // len(piece) * len(piece)
    finally:
        faulthandler.cancel_dump_traceback_later()
