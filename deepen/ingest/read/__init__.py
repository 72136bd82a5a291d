"""Readers: one file format each, found in one table."""
