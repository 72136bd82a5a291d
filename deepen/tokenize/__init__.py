"""A vocabulary for the corpus, and documents to token shards."""
