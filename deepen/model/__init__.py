"""Hugging Face causal language models as deepen trains them: loading, document isolation, chunked loss."""
