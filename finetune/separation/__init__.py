"""Separation of voices by articulation cues, learnt from sound alone."""
