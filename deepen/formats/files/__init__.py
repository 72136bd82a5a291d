"""How any file is written and read: atomic, hashed, JSON, YAML, parquet, arrays."""
