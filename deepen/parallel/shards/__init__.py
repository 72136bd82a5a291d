"""Sharded and copied weights: summing gradients, clipping, measuring in full precision."""
