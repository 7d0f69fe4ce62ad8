"""`cavmae check`: reading every sample of a data set, adding up what is in it, drawing a sheet."""
