"""The training order, looked at: what is in which step, when a document is trained."""
