"""What moves how fast: learning rates over time, the optimizer, parts of the model, methods."""
