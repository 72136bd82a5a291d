"""How large the package is: lines and files of each room, and of the folders in it.

Run from the repository's root as `python .ci/sizes.py`, or as the last part of `make check`. Lines and files of a room
hold those of its folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PACKAGE = "deepen"


def folders(folder: Path, depth: int = 0) -> Iterator[tuple[int, Path]]:
    """A folder and those below it that hold code, with their depth."""
    yield depth, folder
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and any(inner.rglob("*.py")):
            yield from folders(inner, depth + 1)


def line(depth: int, folder: Path) -> str:
    """One line of the table."""
    files = list(folder.rglob("*.py"))
    num_lines = sum(file.read_bytes().count(b"\n") for file in files)
    return f"{'  ' * depth + folder.name + '/':<24}{num_lines:>7,}{len(files):>7}"


def main() -> None:
    """Print the table."""
    print(f"{'size':<24}{'lines':>7}{'files':>7}")
    for depth, folder in folders(Path(PACKAGE)):
        print(line(depth, folder))


if __name__ == "__main__":
    main()
