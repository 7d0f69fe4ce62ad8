"""Temporal attentions: how tokens of several frames mix in a block."""
