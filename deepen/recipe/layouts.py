"""Recipe against machine file: what of a model and its training cannot be spread over this mesh. No torch.

Asked when the files are read, if the base is at hand by then, and again once it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen.errors import Problem
from deepen.model.config import BaseRun, RandomInit
from deepen.parallel.mesh import combination_problems, model_problems
from deepen.recipe.models import Machine, Recipe
from deepen.train.starting import mesh_limits as layouts


def layout_problems(recipe: Recipe, machine: Machine, config: Mapping[str, Any] | None) -> list[Problem]:
    """Everything about the mesh that cannot work for this recipe; ``config`` is the base's ``config.json``, if known.

    How many processes there will be is not known here.
    """
    found = [*combination_problems(machine.mesh), *layouts.problems(recipe.train, machine.mesh)]
    if config is not None:
        found += model_problems(machine.mesh, config, [phase.length for phase in recipe.mix.lengths])
    return found


def config_of(base: str | BaseRun | RandomInit) -> Mapping[str, Any] | None:
    """The ``config.json`` of a base that is on this machine; None for one that must be fetched first."""
    if isinstance(base, RandomInit):
        return base.config_json(1)
    folder = Path(base.run) / "export" if isinstance(base, BaseRun) else Path(base).expanduser()
    return read_config_json(folder)


def read_config_json(folder: Path) -> Mapping[str, Any] | None:
    """The ``config.json`` in a model's folder; None where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):  # the last: nested without end
        return None
    return config if isinstance(config, dict) else None
