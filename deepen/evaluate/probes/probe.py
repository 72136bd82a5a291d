"""What every probe is: settings with a name, an ability and four methods.

A probe turns its material into a measuring function once (``prepare``); that function is then called for the base and
for every checkpoint. Probes that need torch import it inside their method, so that reading a recipe stays light.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from deepen.errors import Problem
from deepen.plug import Plug
from deepen.settings import Amount, AmountSetting

if TYPE_CHECKING:
    import pyarrow as pa

    from deepen.evaluate.documents.material import Material
    from deepen.formats.documents.found_items import ProbeItem
    from deepen.formats.training.scores import Score
    from deepen.model.loss.model import LossModel

    Measure = Callable[[LossModel, str | None], pa.Table]


_MOST_SECONDS = 365 * 24 * 3600


def _is_time(amount: Amount) -> Amount:
    if amount.unit != "seconds":
        raise ValueError("expected a time such as `30min` or `2h`")
    if not 0 < amount.value <= _MOST_SECONDS:
        raise ValueError("must be more than nothing, and at most 365 days")
    return amount


class Probe(Plug):
    """Base of all probes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """What scores and files are called; the name of the probe's kind if not given. Two probes of one kind need it."""
    time_limit: Annotated[AmountSetting, AfterValidator(_is_time)] = Amount(7200, "seconds")
    """One measurement that takes longer is given up and marked failed: a probe that hangs must not hold a run. 2 h, our
    choice: far beyond what a probe should take."""
    in_loop: bool = True
    """Whether it is measured during training, too. `false`: only of the base, of checkpoints afterwards and by
    `--watch`. Training knows nothing of such a probe, so it may be added to a finished run, changed and removed."""

    @property
    def label(self) -> str:
        """The name in scores and files."""
        return self.name or self.use.replace(":", ".")

    @abstractmethod
    def prepare(self, material: Material) -> Measure:
        """Read and encode what is measured, once.

        The returned function takes a model and a title for the progress display (None: show nothing) and returns a
        table with one row per document (``likelihoods.SCHEMA``) or item (``items.SCHEMA``), those that cannot be used
        included, with the reason.
        """

    @abstractmethod
    def subset(self, material: Material, baseline: pa.Table) -> Mapping[str, Sequence[str]]:
        """Ids that are measured during training, by stratum (source or task), most important first.

        ``baseline`` is the base's table of this probe. The choice must depend on contents alone.
        """

    @abstractmethod
    def compare(self, base: pa.Table, model: pa.Table, material: Material, *, seed: int, resamples: int) -> list[Score]:
        """Scores of a model's table against the base's, paired by id."""

    def slices(self, base: pa.Table, model: pa.Table, material: Material, *, seed: int, resamples: int) -> list[Score]:
        """Scores of parts of what was measured, for people alone: no rule looks at them."""
        return []

    @abstractmethod
    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Counts of one table for the manifest: what was used, what was not and why, the value."""

    def files(self) -> tuple[str, ...]:
        """Files that the result depends on, identified by content."""
        return ()

    def item_files(self) -> tuple[str, ...]:
        """JSON lines files of test items, which curation can keep out of training."""
        return ()

    def items_to_scan(self) -> Sequence[ProbeItem] | None:
        """The usable items, for a search in trained documents; None when there is nothing to search for (documents,
        items that are made up)."""
        return None

    @property
    def is_all_in_files(self) -> bool:
        """Whether ``item_files`` hold all its items."""
        return False

    def readable(self, table: pa.Table, baseline: pa.Table | None) -> str | None:
        """What people should read of a table, beside the base's, as Markdown; None when numbers say it all."""
        return None

    def problems(self, path: str) -> list[Problem]:
        """What cannot work before any work begins; ``path`` is the probe's key in the recipe."""
        return []
