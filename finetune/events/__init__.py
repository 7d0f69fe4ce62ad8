"""Event classification."""
