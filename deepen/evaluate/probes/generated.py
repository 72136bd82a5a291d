"""Probes that bring their own items, and the panel of what must be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from deepen.evaluate.probes.harness import LmEval
from deepen.evaluate.probes.item_probe import ItemProbe
from deepen.evaluate.probes.probe import Probe
from deepen.settings import Count

if TYPE_CHECKING:
    from deepen.evaluate.documents.material import Material
    from deepen.evaluate.probes.probe import Measure


class _Generated(ItemProbe):
    """Base of probes that make their items."""

    ability: Literal["new", "kept"] = "kept"
    """What a base can do, it must not lose."""
    count: Annotated[Count, Field(ge=1)] = 300
    """Items. Our choice: changes of a few points can be told from chance."""
    seed: Annotated[int, Field(ge=0)] = 17
    """Seed of the items."""


class Arithmetic(_Generated):
    """Sums, differences and products of small numbers, written out by the model after three examples."""

    use: Literal["arithmetic"] = "arithmetic"

    def prepare(self, material: Material) -> Measure:
        """Make the items; see ``Probe.prepare``."""
        from deepen.evaluate.items.answering import Answering, prepare_answers
        from deepen.evaluate.items.generated import arithmetic_items

        answering = Answering(8, ("\n",), extract="first_number")
        return prepare_answers(arithmetic_items(self.count, self.seed), answering, material)


class Instructions(_Generated):
    """Small instructions about words, whose answer is right or wrong to the letter, after two examples."""

    use: Literal["instructions"] = "instructions"
    count: Annotated[Count, Field(ge=1)] = 200
    """Items. Our choice, as for `arithmetic`."""

    def prepare(self, material: Material) -> Measure:
        """Make the items; see ``Probe.prepare``."""
        from deepen.evaluate.items.answering import Answering, prepare_answers
        from deepen.evaluate.items.generated import instruction_items

        answering = Answering(16, ("\n",), to_the_letter=True)
        return prepare_answers(instruction_items(self.count, self.seed), answering, material)


OFFLINE: tuple[Probe, ...] = (Arithmetic(), Instructions())
PANELS: dict[str, tuple[Probe, ...]] = {
    "none": (),
    "offline": OFFLINE,
    "default": (
        LmEval(name="mmlu", tasks=("mmlu",), shots=5, limit=1000),
        LmEval(name="hellaswag", tasks=("hellaswag",), limit=1000, metric="acc_norm"),
        LmEval(name="arc_challenge", tasks=("arc_challenge",), metric="acc_norm"),
        *OFFLINE,
    ),
}
"""Probes of what must be kept, beside the bits per byte of kept text that `held_out` measures."""
