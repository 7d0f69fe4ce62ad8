"""Footage: long recordings of several shots, composed from clips of single speakers, with truth."""
