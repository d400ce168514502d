"""Things to run and to read that no part of the cluster imports."""
