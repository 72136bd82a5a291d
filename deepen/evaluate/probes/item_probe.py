"""What probes of questions share: where the items are, what they measure, how many are asked during training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deepen.errors import DeepenError, Problem
from deepen.evaluate.probes.probe import Probe
from deepen.settings import Count

if TYPE_CHECKING:
    import pyarrow as pa

    from deepen.evaluate.documents.material import Material
    from deepen.evaluate.items.files import Item
    from deepen.formats.documents.found_items import ProbeItem
    from deepen.formats.training.scores import Score


class ItemProbe(Probe):
    """Base of probes whose result is a value per item."""

    ability: Literal["new", "kept"] = "new"
    """Whether the items ask for what the run teaches, or for what it must not lose."""
    in_loop_items: Annotated[Count, Field(ge=1)] = 200
    """Items during training, each task with its share, chosen once by the hash of their ids. Our choice: small beside
    the training itself; the full evaluation asks all."""

    def subset(self, material: Material, baseline: pa.Table) -> Mapping[str, Sequence[str]]:
        """Usable items with the smallest hashes, in proportion to the sizes of the tasks."""
        from deepen.evaluate.items.tables import subset_of

        return subset_of(baseline, num_items=self.in_loop_items)

    def compare(self, base: pa.Table, model: pa.Table, material: Material, *, seed: int, resamples: int) -> list[Score]:
        """A score per task, and their mean."""
        from deepen.evaluate.items.tables import Kind, compare_items

        return compare_items(base, model, Kind(self.label, self.ability), seed=seed, resamples=resamples)

    def compare_without(
        self, base: pa.Table, model: pa.Table, left_out: Collection[tuple[str, str]], *, seed: int, resamples: int
    ) -> list[Score]:
        """The scores that change when the items ``left_out`` (task, id) do not count; see ``items.compare_without``."""
        from deepen.evaluate.items.tables import Kind, compare_without

        kind = Kind(self.label, self.ability)
        return compare_without(base, model, kind, left_out, seed=seed, resamples=resamples)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Items, items used, items not used by reason, and the value of every task."""
        from deepen.evaluate.items.tables import summary

        return summary(table)


class FileProbe(ItemProbe):
    """Base of probes whose items are the lines of a file."""

    path: str
    """JSON lines with one item each (``.jsonl``, also ``.jsonl.gz``)."""
    prompt: str = "{question}"
    """What the model is given: text with fields of the item in braces. Lists are joined by blank lines."""
    answer: str = "answer"
    """Field of the right answer."""
    id: str = "id"
    """Field of the item's name; without it an item is called after its line."""
    by: str | None = None
    """Field whose values are tasks with scores of their own; their mean is the probe's score."""
    group: str | None = None
    """Field whose values name what items have in common, such as a passage: intervals are clustered by it."""
    limit: Annotated[Count, Field(ge=1)] | None = None
    """Items at most, each task with its share, chosen by the hash of their ids."""
    shots: Annotated[Count, Field(ge=0)] = 0
    """Examples with their answers before every question: the first usable items of `shots_path`."""
    shots_path: str | None = None
    """Where the examples come from; it must not be `path` itself, whose items would then be asked with their answers
    in sight."""

    def files(self) -> tuple[str, ...]:
        """The items and the examples."""
        return (self.path, *([self.shots_path] if self.shots_path else []))

    def item_files(self) -> tuple[str, ...]:
        """The items."""
        return (self.path,)

    @property
    def is_all_in_files(self) -> bool:
        """They are."""
        return True

    def items_to_scan(self) -> list[ProbeItem]:
        """The usable items with all texts of their rows; examples are none of them."""
        from deepen.formats.documents.found_items import ProbeItem

        usable = [item for item in self._own_items() if item.reason is None]
        return [ProbeItem(self.label, item.task, item.id, item.texts) for item in usable]

    def _own_items(self) -> list[Item]:
        from deepen.evaluate.items.files import Layout, limited, read_items

        layout = Layout(self.label, self.by, self.id, self.group)
        return limited(read_items(Path(self.path).expanduser(), layout, self.parse), self.limit)

    def items(self) -> list[Item]:
        """All items, examples put before their prompts; raises ``DeepenError`` when none can be used."""
        from deepen.evaluate.items.files import Layout, read_items
        from deepen.evaluate.items.prompts import shown, with_shots

        found = self._own_items()
        if not any(item.reason is None for item in found):
            reasons = ", ".join(sorted({str(item.reason) for item in found})) or "the file is empty"
            raise DeepenError(f"`{self.label}`: no item of `{self.path}` can be used ({reasons})", hint=_FIELDS_HINT)
        if self.shots == 0 or self.shots_path is None:
            return found
        examples = read_items(Path(self.shots_path).expanduser(), Layout("shots"), self.parse)
        usable = [shown(item, self.between) for item in examples if item.reason is None][: self.shots]
        if len(usable) < self.shots:
            message = f"`{self.label}`: `{self.shots_path}` has {len(usable)} usable examples, {self.shots} are needed"
            raise DeepenError(message, hint="lower `shots`")
        return with_shots(found, usable)

    @property
    def between(self) -> str:
        """What stands between a prompt and its answer."""
        return " "

    @abstractmethod
    def parse(self, row: dict[str, Any]) -> Item:
        """A row as an item; raises ``item_files.BadRowError``."""

    def problems(self, path: str) -> list[Problem]:
        """Files that are not there, and examples without a source."""
        found = _template_problems(self.prompt, f"{path}.prompt")
        for key, file in (("path", self.path), ("shots_path", self.shots_path)):
            if file is not None and not Path(file).expanduser().is_file():
                found.append(Problem(f"{path}.{key}", "there is no such file", "give a JSON lines file of items", file))
        if self.shots and (self.shots_path is None or self.shots_path == self.path):
            remedy = "set it to a file of examples that are not asked themselves"
            found.append(Problem(f"{path}.shots_path", "examples need a file of their own", remedy))
        return found


def _template_problems(template: str, path: str) -> list[Problem]:
    """A text with fields in braces that cannot be read as one."""
    remedy = "put names of fields in braces, and write `{{` and `}}` for braces themselves"
    try:
        fields = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        return [Problem(path, f"cannot be read: {error}", remedy, template)]
    odd = [name for name, form, conversion in (part[1:] for part in fields) if not name or form or conversion]
    return [Problem(path, "has braces that name no field", remedy, template)] if odd else []


_FIELDS_HINT = "`prompt`, `choices` and `answer` must name fields that the items have"
