"""The probes: each is its settings; what needs torch is imported when a model is measured."""
