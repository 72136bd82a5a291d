"""Evaluate: what a model gained and what it forgot, against the untouched base."""
