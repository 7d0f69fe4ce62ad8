"""Recordings of any length: windows, people in them, and who is who from one to the next."""
