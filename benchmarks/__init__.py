"""Scripts that measure Baton against its limits and its peers; see README.md."""
