"""What `cavmae separate` is made of: a file's windows, what is found in them, files of results."""
