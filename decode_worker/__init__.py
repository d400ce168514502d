"""The decode worker: takes KV blocks over, or computes them itself, and writes answers."""
