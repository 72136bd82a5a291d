"""What a training leaves: checkpoints and their roles, decisions, scores."""
