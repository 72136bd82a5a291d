"""Training order in, checkpoints out: the loop, its schedules, its optimizer, its checkpoints."""
