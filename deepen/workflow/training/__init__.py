"""The training of a run: in this process, in several, on several nodes."""
