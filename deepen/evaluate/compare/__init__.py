"""A model against the base: statistics, documents, tables for people."""
