"""Test items in documents: found, and taken out before training."""
