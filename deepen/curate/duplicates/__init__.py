"""Duplicates: exact and near ones, from shingles to clusters, and which copy stays."""
