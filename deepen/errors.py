"""Every error that deepen raises for its users.

    DeepenError
    ├── RecipeError         the recipe or machine file is wrong (all problems at once, exit code 2)
    ├── SourceError         input data cannot be used: missing, empty, everything rejected
    ├── RunError            a run directory refuses: changed inputs, lock held, unfinished stage
    │   └── DamageError     bytes on disk differ from their manifest
    ├── TrainingError       the training run cannot go on
    ├── OfflineError        something is needed from the network and --offline was given
    └── MissingExtraError   an optional dependency is not installed

Programming mistakes are plain ``assert`` with a message; they are never shown as a ``DeepenError``.
"""

from __future__ import annotations

from dataclasses import dataclass

_MOST_SHOWN = 40
"""Problems of a recipe that are printed; nobody reads more, and the first ones must stay on the screen."""


class DeepenError(Exception):
    """An error whose reader can fix it: ``message`` says what is wrong and where, ``hint`` what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe or machine file."""

    path: str
    """Dotted key, for example ``train.tokens`` or ``curate.steps[2].min``."""
    message: str
    remedy: str = ""
    value: str = ""
    place: str = ""
    """``file:line``, or ``--set`` for a value given on the command line."""

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        value = f" (value: `{self.value}`)" if self.value else ""
        remedy = f"\n    hint: {self.remedy}" if self.remedy else ""
        return f"{where}{self.path or 'recipe'}: {self.message}{value}{remedy}"


class RecipeError(DeepenError):
    """The recipe or machine file is wrong; carries every problem found."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
        lines = [f"  {problem}" for problem in problems[:_MOST_SHOWN]]
        if len(problems) > _MOST_SHOWN:
            lines.append(f"  and {len(problems) - _MOST_SHOWN:,} more (`deepen check --json` prints all)")
        super().__init__(f"{count} found before any work started\n" + "\n".join(lines))


class SourceError(DeepenError):
    """Input data cannot be used; the message names the source."""


class RunError(DeepenError):
    """A run directory refuses the operation."""


class DamageError(RunError):
    """Bytes on disk differ from what their manifest says; the message names the file."""


class TrainingError(DeepenError):
    """Training cannot go on."""


class OfflineError(DeepenError):
    """Something is needed from the network, and the run is offline."""


class MissingExtraError(DeepenError):
    """An optional dependency is not installed; the hint holds the exact pip line."""
