"""Compiled loops of the rules: numba, over the characters of a whole batch."""
