"""What a run starts from: files and models, found, fetched, identified by content."""
