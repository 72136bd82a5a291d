"""Ways to cut a model or a batch: matrices, layers, stretches of rows, rows; which families allow it."""
