"""Where the parts of data stages run: part of the machine file, never of the recipe, and never fingerprinted."""

from __future__ import annotations

from deepen.settings import Settings


class Engine(Settings):
    """What spreads the work of data stages."""

    ray: str | None = None
    """Address of a Ray cluster (``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``) that runs the parts instead of
    processes of this machine. Its nodes need deepen and the same file system; needs the extra ``ray``."""
