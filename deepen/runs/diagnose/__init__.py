"""What went wrong in a run: rules over its records, each with evidence and advice."""
