"""Saving and loading: whole or sharded, behind training, tested before the first step."""
