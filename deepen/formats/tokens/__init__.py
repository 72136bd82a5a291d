"""Token shards and rows: Megatron pairs, masks of targets, packs, the training order."""
