"""Measuring while training: small frozen parts of every probe, without any risk to the run."""
