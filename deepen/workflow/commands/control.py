"""The control of a run: the same recipe on replay alone, with as many tokens and steps, beside it.

What a model loses (or gains) on general text has two parts: training on at all, with its re-warmed learning rate, and
the domain. The control has the first part only, so the difference between the two runs is the domain's doing.
"""

from __future__ import annotations

from pathlib import Path

from deepen.errors import RunError
from deepen.recipe.models import Recipe


def control_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the control; raises ``RunError`` when there is nothing that it could be trained on.

    Nothing acts on its scores: a control that is steered is none.
    """
    roles = {source.role for source in recipe.ingest.sources} | {rows.role for rows in recipe.mix.fixed_rows}
    if "replay" not in roles or recipe.mix.control:
        why = "is a control itself" if recipe.mix.control else "has no source with `role: replay` to train a control on"
        raise RunError(f"`{recipe.name}` {why}", hint="leave --control out, or add a source of general text")
    if recipe.mix.order == "megatron_one_pass":
        raise RunError("one pass over everything has no control", hint="leave --control out, or set mix.order")
    watching = recipe.evaluate.forgetting.model_copy(update={"actions": ()})
    changed = {
        "name": f"{recipe.name}-control",
        "mix": recipe.mix.model_copy(update={"control": True}),
        "evaluate": recipe.evaluate.model_copy(update={"forgetting": watching}),
    }
    return Recipe.model_validate(recipe.model_copy(update=changed).model_dump())


def control_of(recipe: Recipe, run: Path) -> tuple[Recipe, Path]:
    """Recipe and directory of the control of ``run``, beside it; stages that do not depend on the mixture are taken
    from there."""
    control = control_recipe(recipe)
    return control, run.resolve().parent / control.name
