"""Measures of people tracks of whole recordings against ground truth."""
