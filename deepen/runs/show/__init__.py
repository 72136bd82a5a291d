"""Any artifact, shown: documents, drops, rows, batches, scores."""
