"""Questions of probes: read or generated, turned into tokens, chosen or answered, kept as tables."""
