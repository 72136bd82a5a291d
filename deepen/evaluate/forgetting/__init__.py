"""The forgetting monitor: its budget and actions, and what it decides from all scores so far."""
