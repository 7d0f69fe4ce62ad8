"""Progressive expansion of a motion pathway (X3D, Feichtenhofer, CVPR 2020, arXiv 2004.04730)."""
