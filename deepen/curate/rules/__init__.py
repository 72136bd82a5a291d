"""Rules on one document: each is a step with its settings beside it."""
