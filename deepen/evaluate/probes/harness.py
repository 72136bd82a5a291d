"""The probe that asks any task of the lm-evaluation-harness."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from deepen.errors import Problem
from deepen.evaluate.probes.item_probe import ItemProbe
from deepen.settings import Count, Many

if TYPE_CHECKING:
    from deepen.evaluate.documents.material import Material
    from deepen.evaluate.harness.tasks import Wanted
    from deepen.evaluate.probes.probe import Measure
    from deepen.formats.documents.found_items import ProbeItem

_YAML = (".yaml", ".yml")
_DATA = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
_VALUE = re.compile(r""""([^"\n]+)"|'([^'\n]+)'|([^\s"'\[\]{},:](?:(?!:\s)[^"'\[\]{},\n])*)""")
"""A quoted text, or a plain one up to what ends it in YAML."""


class LmEval(ItemProbe):
    """Tasks of the lm-evaluation-harness: its prompts and its judgement, answered by our model (extra `lm-eval`)."""

    use: Literal["lm_eval"] = "lm_eval"
    ability: Literal["new", "kept"] = "kept"
    """Public tasks mostly ask for what the base can do, and must not lose."""
    tasks: Many[str]
    """Names of tasks, groups or tags of the harness, or paths of task files (`.yaml`). Each has a score of its own."""
    include: str | None = None
    """Folder with more task files, as `--include_path` of the harness."""
    shots: Annotated[Count, Field(ge=0)] | None = None
    """Examples before a question; the task's own number if not given."""
    limit: Annotated[Count, Field(ge=1)] | None = None
    """Items of all tasks together, each task with its share, chosen by the hash of their places in the data set."""
    metric: str | None = None
    """Metric of the task, such as `acc_norm`; if not given `acc`, `exact_match`, or the task's first."""
    filter: str | None = None
    """Which of the task's filters of answers counts; the first if not given."""

    def prepare(self, material: Material) -> Measure:
        """Load the tasks and make all prompts; see ``Probe.prepare``."""
        from deepen.evaluate.harness.tasks import prepare_tasks

        return prepare_tasks(self._wanted, material)

    @property
    def _wanted(self) -> Wanted:
        from deepen.evaluate.harness.tasks import Wanted

        return Wanted(self.tasks, self.include, self.shots, self.limit, self.metric, self.filter)

    def files(self) -> tuple[str, ...]:
        """The task files with what they are made of; what hub tasks ask is the harness's and the hub's, by name."""
        named = [name for name in self.tasks if name.endswith(_YAML)]
        if self.include is not None:
            named += [str(path) for path in sorted(Path(self.include).expanduser().rglob("*.yaml"))]
        return tuple(dict.fromkeys(file for name in named for file in _with_parts(Path(name))))

    def item_files(self) -> tuple[str, ...]:
        """Local JSON lines files that the task files name."""
        return tuple(path for path in self.files() if path.endswith((".jsonl", ".jsonl.gz")))

    @property
    def is_all_in_files(self) -> bool:
        """Whether every task is a file that names local data in JSON lines."""
        return self.include is None and all(
            name.endswith(_YAML)
            and (files := _data_files(Path(name)))
            and all(path.endswith((".jsonl", ".jsonl.gz")) for path in files)
            for name in self.tasks
        )

    def items_to_scan(self) -> list[ProbeItem]:
        """The documents of the tasks that are asked; loads the harness."""
        from deepen.evaluate.harness.tasks import items_of

        return items_of(self._wanted, self.label)

    def problems(self, path: str) -> list[Problem]:
        """The harness that is not installed, and task files that are not there."""
        found = []
        if find_spec("lm_eval") is None:
            message = "needs the lm-evaluation-harness, which is not installed"
            found.append(Problem(path, message, "pip install 'deepen[lm-eval]'", self.use))
        if not self.tasks:
            found.append(Problem(f"{path}.tasks", "is empty", "name at least one task", self.use))
        for name in self.tasks:
            if name.endswith(_YAML) and not Path(name).expanduser().is_file():
                found.append(Problem(f"{path}.tasks", "there is no such task file", "give its path", name))
        if self.include is not None and not Path(self.include).expanduser().is_dir():
            found.append(Problem(f"{path}.include", "there is no such folder", "give a folder of task files"))
        return found


def _with_parts(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[str]:
    """A task file with the files that make it up: data, task files that it includes, modules of its functions."""
    yield str(path)
    yield from _data_files(path)
    for value in _values(path):
        kind, _, name = value.partition(" ")
        if kind == "!function":
            module = path.expanduser().parent / f"{name.strip().partition('.')[0]}.py"
            if module.is_file():
                yield str(module)
        elif value.endswith(_YAML) and path not in seen:
            included = path.expanduser().parent / value
            if included.is_file():
                yield from _with_parts(included, (*seen, path))


def _data_files(path: Path) -> list[str]:
    """Local data files that a task file names, at any depth."""
    found = [value for value in _values(path) if value.removesuffix(".gz").endswith(_DATA)]
    return [name for name in dict.fromkeys(found) if Path(name).expanduser().is_file()]


def _values(path: Path) -> list[str]:
    """All texts in a task file, whose own tags keep it from being read as plain YAML."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    found = ["".join(parts).strip() for parts in _VALUE.findall(text)]
    return [value.removeprefix("- ").strip() for value in found]
