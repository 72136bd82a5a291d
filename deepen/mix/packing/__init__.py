"""Documents into rows: packed by best fit, filled exactly, or one per row."""
