"""Recipe (what is to come out) and machine (where and how fast): models, reading, checks, explanations."""
