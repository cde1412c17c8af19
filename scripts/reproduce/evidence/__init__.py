"""Each claim of the three papers against the rows of the experiments."""
