"""Files of any format become documents."""
