"""A domain source that loses much is told of by itself, with the reasons and the command that shows what went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepen.curate.passes.summary import large_losses


def source(role: str = "domain", dropped: int = 0, bytes_kept: int = 1000) -> dict[str, Any]:
    return {
        "role": role, "documents_in": 300, "dropped": {"too_short": dropped} if dropped else {}, "bytes_in": 1000,
        "bytes_kept": bytes_kept, "held_out_bytes": 0,
    }  # fmt: skip


def test_a_tenth_of_a_domain_source_is_not_lost_in_silence() -> None:
    counts = {
        "chats": source(dropped=116), "edited": source(bytes_kept=800), "fine": source(dropped=30, bytes_kept=900),
        "web": source("replay", dropped=200),
    }  # fmt: skip
    chats, edited = large_losses(counts, Path("runs/x/curate"))
    assert "`chats` lost 116 of 300 documents (39%)" in chats and "too_short (116)" in chats
    assert "`deepen show runs/x/curate --dropped all" in chats
    assert "`edited`" in edited and "20% of its bytes by edits" in edited and "show" not in edited
