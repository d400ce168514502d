"""The nouns that every other package shares. Standard library only; imports nothing of Baton."""
