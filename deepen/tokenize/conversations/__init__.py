"""Turns and answers: the base's own template, and which tokens are learned."""
