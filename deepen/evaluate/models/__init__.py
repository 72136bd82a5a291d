"""The models that are measured: the base, kept checkpoints, blends of them."""
