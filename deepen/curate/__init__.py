"""Documents become documents worth training on, with a reason for every drop and a leak-free held-out split."""
