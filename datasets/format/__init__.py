"""What a data set is on disk: samples, shards, manifests."""
