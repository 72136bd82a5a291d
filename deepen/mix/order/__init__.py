"""The training order: built from shares and permutations, as Megatron would, or changed on the way."""
