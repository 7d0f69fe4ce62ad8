"""Speaker model: separation and segmentation of talking people."""
