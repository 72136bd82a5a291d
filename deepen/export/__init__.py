"""Export: the chosen model as a Hugging Face folder, proven by a round trip."""
