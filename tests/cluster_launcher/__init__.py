"""Tests of the command `baton` and of what it starts."""
