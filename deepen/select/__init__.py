"""Select: one checkpoint out of the scored ones, with the argument for it."""
