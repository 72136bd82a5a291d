"""Mapping a function over parts of a corpus: local processes, resumable."""
