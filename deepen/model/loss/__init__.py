"""The loss without logits: head and cross-entropy chunk by chunk, and the distance to a base."""
