"""How curation runs: the chain of steps, its passes over a corpus, what is held out, the choice at the end."""
