"""The demo's model: its weights, and the recipe that made them from Python's standard library."""
