"""Docs are for people whose time is short: short sentences, and an example at the top of each page."""

import re
from pathlib import Path

import pytest

import deepen

ROOT = Path(deepen.__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md")) + [ROOT / "README.md"]
MOST_WORDS = 30
WITHOUT_EXAMPLE = {"design.md"}


def long_sentences(page: str) -> list[str]:
    """The prose sentences of a page that have too many words; code, tables, headings and addresses do not count."""
    page = re.sub(r"^( *)```.*?^\1```", "\n", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page)  # of a link its text stays
    page = re.sub(r"`[^`\n]+`", "code", page)  # reads as one word
    page = re.sub(r"(https?://|arXiv:)\S*\w", "address", page)
    page = re.sub(r"\b(e\.g|i\.e|vs|cf|et al)\.", r"\1", page)
    blocks: list[list[str]] = [[]]
    for line in map(str.strip, page.splitlines()):
        if not line or line.startswith(("|", "#")):
            blocks.append([])
        elif re.match(r"([-*+]|\d+\.)\s", line):
            blocks.append([re.sub(r"^([-*+]|\d+\.)\s+", "", line)])
        else:
            blocks[-1].append(line)
    sentences = [one for lines in blocks for one in re.split(r"(?<=[.!?])[*)\"]*\s+", " ".join(lines))]
    return [one for one in sentences if len(re.findall(r"\S*\w\S*", one)) > MOST_WORDS]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_sentences_are_short(path):
    assert long_sentences(path.read_text()) == []


@pytest.mark.parametrize(
    "path", [path for path in PAGES if path.name not in WITHOUT_EXAMPLE], ids=lambda path: path.name
)
def test_a_page_begins_with_what_it_is_for_and_an_example(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert re.match(r"\w|`|\*", next(line for line in lines[1:] if line)), "it begins with a sentence"
    assert any(line.startswith("```") for line in lines[:24]), "an example stands near the top"


def test_a_long_sentence_would_be_seen():
    short, long = " ".join(["word"] * MOST_WORDS) + ".", " ".join(["word"] * (MOST_WORDS + 1)) + "."
    assert long_sentences(f"# {long}\n\n{short} {short}\n\n| {long} |\n\n```\n{long}\n```\n") == []
    assert long_sentences(f"- {short}\n- {long[:-1]}\n  more. {short}\n")
