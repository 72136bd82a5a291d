"""The lm-evaluation-harness: its tasks as a probe, our models as its models."""
