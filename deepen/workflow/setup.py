"""Everything a stage may need, gathered before the first one runs; and what of it training knows already.

Probes that are not measured during training, and blends, may be added, changed and removed after it. Everything up to
training is identified without them. Each result has two identities, its fingerprint and the core of it: with the same
core two results differ in such probes alone, and the older one may be replaced without being asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepen.formats.manifest import InputEntry
from deepen.ingest.config import IngestConfig
from deepen.model.config import ResolvedBase
from deepen.parallel.processes.gang import Gang
from deepen.recipe.models import Machine, Recipe


@dataclass(frozen=True)
class Setup:
    """Everything a stage may need: the recipe, the machine, and the inputs found on disk."""

    recipe: Recipe
    machine: Machine
    base: ResolvedBase
    sources: IngestConfig
    """The recipe's sources with hub addresses replaced by the folders they were fetched to."""
    raw_inputs: Mapping[str, InputEntry]
    """Identity of what is no stage of this run: ``base``, ``source:NAME``, ``held_out`` (another run's),
    ``probe:FILE`` (items that curation keeps out), ``probe_files:NAME`` (what a probe reads), ``tokenize:NAME``,
    ``fixed_rows:NAME`` and ``fixed_rows_tokenizer:NAME``."""
    gang: Gang | None = None
    """The processes that a launcher started beside this one, which wait to train with it."""

    @property
    def num_batches(self) -> int:
        """Optimizer steps of the run."""
        from deepen.train.config import num_steps

        return num_steps(self.recipe.train)


def recipe_in_loop(recipe: Recipe) -> Recipe:
    """The recipe as training knows it."""
    return recipe.model_copy(update={"evaluate": recipe.evaluate.in_loop})


def setup_in_loop(setup: Setup) -> Setup:
    """The setup as training knows it: without probes that only come after it, and without their files."""
    late = {f"probe_files:{probe.label}" for probe in setup.recipe.evaluate.late_probes}
    raw_inputs = {name: entry for name, entry in setup.raw_inputs.items() if name not in late}
    return replace(setup, recipe=recipe_in_loop(setup.recipe), raw_inputs=raw_inputs)


def core_of(recorded: Mapping[str, Any]) -> str:
    """The core of finished or unfinished work, from its record."""
    return str(recorded.get("core") or recorded["fingerprint"])
