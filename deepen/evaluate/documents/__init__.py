"""Held-out documents: which are scored, in which windows, and their likelihoods."""
