"""Benchmarks of `cavmae bench`, their synthetic inputs and their tables."""
