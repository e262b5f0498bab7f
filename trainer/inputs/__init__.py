"""From shards to batches: reading, decoding, tokens, order, damage."""
