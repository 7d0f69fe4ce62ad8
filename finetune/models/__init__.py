"""Models that travel with the package, "in the box": a folder each, as `cavmae export` writes it.

The name of a folder is the name of its model.
"""
