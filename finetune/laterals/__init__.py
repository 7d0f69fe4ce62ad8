"""Lateral connections between pathways, after audiovisual SlowFast networks."""
