"""What comes after training: probes that are not measured during it, and blends; they may be added, changed and removed
later.

Everything up to training is identified without them. Each result has two identities, its fingerprint and the core of
it: with the same core two results differ in such probes alone, and the older one may be replaced without being asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepen.recipe.models import Recipe
    from deepen.workflow.stages import Setup


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
