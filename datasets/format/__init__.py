"""Format of a data set on disk: samples, shards, manifests."""
