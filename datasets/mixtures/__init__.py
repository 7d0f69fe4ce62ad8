"""Audio-visual mixtures composed from clips of single speakers, with ground truth."""
