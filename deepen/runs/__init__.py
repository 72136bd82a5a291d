"""Everything that only reads a run: what is in it, whether it adds up, what went wrong. No torch."""
