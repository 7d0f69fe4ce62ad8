"""Made input for measuring and testing, and tables of what was measured."""
