"""Commands that make something besides a plain run."""
