"""Token shards to packed rows, and packed rows to one written-down training order."""
