"""Weights and files: loading whole or streamed, pieces over processes, safetensors, sums of models."""
