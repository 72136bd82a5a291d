"""``python -m deepen.cli``: the same as the command ``deepen``."""

from deepen.cli import main

main()
