"""deepen continues the pretraining of a language model on a domain, from raw files to a proven, exported model.

Importing it loads no torch; each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from deepen.errors import DeepenError

_HOMES = {
    "Artifact": "deepen.formats.manifest",
    "Machine": "deepen.recipe.models",
    "Recipe": "deepen.recipe.models",
    "RunOptions": "deepen.workflow.run",
    "account": "deepen.runs.account",
    "load": "deepen.recipe.reading",
    "run_pipeline": "deepen.workflow.run",
    "verify": "deepen.runs.verify",
}

__all__ = ["DeepenError", "__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("deepen.settings").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module `deepen` has no attribute `{name}`")
    return getattr(import_module(_HOMES[name]), name)
