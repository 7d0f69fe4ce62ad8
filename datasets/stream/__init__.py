"""Stream from shards to batches: shuffle, reading, decoding, transforms."""
