"""The speaker model: voices and masks of people who talk."""
