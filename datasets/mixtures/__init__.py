"""Training mixtures out of clips of single people: pictures joined, voices mixed, truth known."""
