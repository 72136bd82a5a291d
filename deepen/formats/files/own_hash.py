"""Pages that carry the hash of their own contents in a last comment, for files that no manifest names."""

from __future__ import annotations

import re
from pathlib import Path

import xxhash

_COMMENT = "<!-- xxh3:{} -->\n"
_LAST_LINE = re.compile(rb"<!-- xxh3:([0-9a-f]{32}) -->\n\Z")


def with_own_hash(page: str) -> bytes:
    """The page as bytes, with a comment at its end that holds the hash of all before."""
    text = page.encode()
    return text + _COMMENT.format(xxhash.xxh3_128_hexdigest(text)).encode()


def own_hash_fault(path: Path) -> str | None:
    """What is wrong with a page, or None. A whole one without such a comment is of version 0.1."""
    data = path.read_bytes()
    found = _LAST_LINE.search(data)
    if found is None:
        return None if data.rstrip().endswith(b"</html>") else f"`{path}` was cut: it does not end as a page does"
    if xxhash.xxh3_128_hexdigest(data[: found.start()]) != found[1].decode():
        return f"`{path}` has other contents than it was written with (hash differs)"
    return None
