"""From settings to a run that is ready: the model, the resume point, what was settled at the first start."""
