"""The probe that lets the model write, for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from deepen.evaluate.probes.probe import Probe
from deepen.settings import Count, Many

if TYPE_CHECKING:
    import pyarrow as pa

    from deepen.evaluate.documents.material import Material
    from deepen.evaluate.items.sampling import Prompts
    from deepen.evaluate.probes.probe import Measure
    from deepen.formats.training.scores import Score

GENERAL = (
    "Once upon a time, there was",
    "The most important thing about water is",
    "To make a cup of tea, first",
    "In the year 1900, people",
)
"""Beginnings of general text; our own."""


class Samples(Probe):
    """Texts from fixed prompts, kept as files beside the base's, with their rates of repetition and boilerplate.

    The rates are scores of their own (`NAME:repetition`, `NAME:boilerplate`) and count against no budget.
    """

    use: Literal["samples"] = "samples"
    domain: Many[str] = ()
    """Beginnings of domain texts; without any, the first words of held-out documents of each domain source."""
    general: Many[str] = GENERAL
    """Beginnings of general texts."""
    per_source: Annotated[Count, Field(ge=1)] = 2
    """Held-out documents per domain source whose first words are prompts, where `domain` is empty."""
    max_tokens: Annotated[Count, Field(ge=1)] = 100
    """Tokens of a text at most. Our choice: a paragraph."""
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.0
    """0 takes the likeliest token, which shows loops at once; 1 samples from the model's own distribution."""
    seed: Annotated[int, Field(ge=0)] = 17
    """Seed of sampling, the same at every measurement."""

    def prepare(self, material: Material) -> Measure:
        """Encode the prompts; see ``Probe.prepare``."""
        from deepen.evaluate.items.sampling import prepare_samples
        from deepen.model.generate import Decoding

        decoding = Decoding(self.max_tokens, temperature=self.temperature, seed=self.seed)
        return prepare_samples(self._prompts, decoding, material)

    def subset(self, material: Material, baseline: pa.Table) -> Mapping[str, Sequence[str]]:
        """All prompts: there are few, and texts are to be compared from step to step."""
        return {"prompts": sorted(set(baseline["id"].to_pylist()))}

    def compare(self, base: pa.Table, model: pa.Table, material: Material, *, seed: int, resamples: int) -> list[Score]:
        """The rates of domain texts and of general texts beside the base's."""
        from deepen.evaluate.documents.likelihoods import part_of
        from deepen.evaluate.items.sampling import prompts_of
        from deepen.evaluate.items.tables import Kind, compare_items
        from deepen.formats.training.scores import Ability

        abilities: dict[Ability, list[str]] = {"new": [], "kept": []}
        for prompt in prompts_of(self._prompts, material):
            abilities[prompt.ability].append(prompt.id)
        found = []
        for ability, ids in abilities.items():
            kind = Kind(self.label, ability, unit="share", higher_is_better=False, overall=False)
            found += compare_items(base, part_of(model, ids), kind, seed=seed, resamples=resamples)
        return found

    @property
    def _prompts(self) -> Prompts:
        from deepen.evaluate.items.sampling import Prompts

        return Prompts(self.domain, self.general, self.per_source)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Prompts, and the rates of their texts."""
        from deepen.evaluate.items.tables import summary

        return summary(table)

    def readable(self, table: pa.Table, baseline: pa.Table | None) -> str | None:
        """The texts, beside the base's."""
        from deepen.evaluate.items.sampling import as_markdown

        return as_markdown(table, baseline)
