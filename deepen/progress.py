"""Progress of long work on standard error: rate, share done and time left.

On a terminal a live bar; elsewhere (logs, CI) a plain line every 15 seconds, so that a log of a long run stays short.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 15.0
_quiet = False


def quiet(yes: bool) -> None:
    """Say nothing from now on, or again: of many processes that do the same work one speaks."""
    global _quiet
    _quiet = yes


class Tracker(Protocol):
    """What a stage sees of the progress display."""

    def advance(self, amount: float, note: str = "") -> None:
        """Report that ``amount`` more units are done; ``note`` is shown beside them."""


@contextmanager
def track(what: str | None, total: float, unit: str, done: float = 0) -> Iterator[Tracker]:
    """Show the progress of ``what`` towards ``total`` units, beginning at ``done``, while the block runs; None: show
    nothing (the loop's own display is on the screen)."""
    console = plain_console(stderr=True)
    if _quiet or what is None:
        yield _Nothing()
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(what, total=total, rate="", note="")
            progress.update(task, completed=done)
            yield _Bar(progress, task, unit, done)
    else:
        yield _Lines(what, total, unit, done)


class _Nothing:
    def advance(self, amount: float, note: str = "") -> None:
        pass


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, unit: str, done: float) -> None:
        self._progress, self._task, self._unit = progress, task, unit
        self._meter = _Meter(done)

    def advance(self, amount: float, note: str = "") -> None:
        self._meter.add(amount)
        rate = rate_text(self._meter.rate, self._unit)
        self._progress.update(self._task, advance=amount, rate=rate, note=printable(note))


class _Lines:
    def __init__(self, what: str, total: float, unit: str, done: float) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._meter = _Meter(done)
        self._next_line = time.monotonic() + _LINE_EVERY_SECONDS

    def advance(self, amount: float, note: str = "") -> None:
        self._meter.add(amount)
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + _LINE_EVERY_SECONDS
        done, rate = self._meter.done, self._meter.rate
        left = (self._total - done) / rate if rate else 0.0
        share = done / self._total if self._total else 1.0
        line = f"{self._what}: {share:.0%} of {readable(self._total)} {self._unit}"
        told = ", ".join(text for text in (line, rate_text(rate, self._unit), f"{left:.0f} s left") if text)
        print(f"{told} {printable(note)}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201


def rate_text(rate: float, unit: str) -> str:
    """Units per second, where that says something: of what takes seconds each (a tokenizer, a large file) it does not,
    and the share done and the time left are told anyway."""
    return f"{readable(rate)} {unit}/s" if rate >= 1 else ""


class _Meter:
    def __init__(self, done: float) -> None:
        self.done = done
        self._at_start, self._started = done, time.monotonic()

    def add(self, amount: float) -> None:
        self.done += amount

    @property
    def rate(self) -> float:
        elapsed_seconds = time.monotonic() - self._started
        return (self.done - self._at_start) / elapsed_seconds if elapsed_seconds > 0 else 0.0


_KEPT = "\n\t"
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """The text with escapes for what would act on a terminal instead of being shown there: control characters but line
    ends and tabs, marks that turn the direction of writing, lone surrogates."""
    if text.isprintable():  # nearly always
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    acts = unicodedata.category(character) in ("Cc", "Cs") or character in _BIDIRECTIONAL
    return character.encode("unicode_escape").decode() if acts and character not in _KEPT else character


def plain_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """Prints text as it is: names of users may hold what rich would read as a style (``[b]``) or an emoji (``:x:``)."""
    return Console(stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)


def say(message: str) -> None:
    """Tell the user something worth knowing, on standard error."""
    if _quiet:
        return
    plain_console(stderr=True, soft_wrap=True).print(printable(message))


def aligned(rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    """Rows as lines with columns of equal width: ``num_left`` to the left, numbers after them to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < num_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def readable(number: float) -> str:
    """A number for people: 950, 12.3k, 4.5M, 6.7B."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}" if number != int(number) else str(int(number))
