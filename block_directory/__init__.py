"""Which worker is there and which blocks it holds: shared through Redis, answered from memory, advisory throughout."""
