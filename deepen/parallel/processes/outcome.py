"""How processes of one training ended, as small files in a folder that their parent (or their next start) reads.

An exit code alone cannot carry a hint, and of many processes that fail together only the first knows why. A ``final``
outcome is one that another start would only meet again: wrong settings, damaged files, the limit of time.
"""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from deepen.errors import DeepenError
from deepen.formats.files.atomic import write_json

_ECHOES = ("connection closed", "connection reset", "broken pipe", "timed out", "timeout", "remote process")
"""What a process says whose partner has died; the partner itself is the better witness."""


@dataclass(frozen=True)
class Outcome:
    """How one process ended."""

    rank: int
    restarts: int
    name: str
    """``rank 3 on node-17``."""
    message: str
    hint: str | None
    exit_code: int
    final: bool
    details: str = ""
    """Traceback of what is no user's error."""
    at: float = 0.0
    """Seconds since the epoch."""

    @property
    def is_echo(self) -> bool:
        """Whether it only says that a partner is gone."""
        text = (self.message + self.details).lower()
        return not self.final and any(word in text for word in _ECHOES)


class RankError(DeepenError):
    """What one process of a training reported; carries its exit code."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"{outcome.name}: {outcome.message}" + outcome.details, hint=outcome.hint)
        self.exit_code = outcome.exit_code
        self.outcome = outcome


def outcome_of(error: BaseException, name: str, rank: int, restarts: int) -> Outcome:
    """What there is to say about ``error`` on the process ``name``."""
    if isinstance(error, DeepenError):
        final = not getattr(error, "asked_by_signal", False)
        return Outcome(rank, restarts, name, error.message, error.hint, error.exit_code, final, at=time.time())
    trace = "\n" + "".join(traceback.format_exception(error))
    message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return Outcome(rank, restarts, name, message, None, 1, False, trace, time.time())


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Note how this process ended."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"rank-{outcome.rank:05d}-start-{outcome.restarts}.json", asdict(outcome))


def read_outcomes(folder: Path) -> list[Outcome]:
    """Everything noted in ``folder``, oldest first."""
    found = [Outcome(**json.loads(path.read_text())) for path in folder.glob("rank-*.json")]
    return sorted(found, key=lambda outcome: outcome.at)


def cause(outcomes: list[Outcome]) -> Outcome | None:
    """The outcome that explains the others: a user's error before a crash, and either before its echoes; of equals the
    first. None when nobody could say anything (killed)."""

    def weight(outcome: Outcome) -> tuple[bool, bool, bool, float]:
        # False comes before True: final ones first, echoes late, and a message with a hint before a traceback.
        return (not outcome.final, outcome.is_echo, bool(outcome.details), outcome.at)

    return min(outcomes, key=weight, default=None)
