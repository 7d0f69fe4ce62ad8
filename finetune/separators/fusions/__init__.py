"""Fusions of a map with the embeddings of voices, entries of a registry of separator settings."""
