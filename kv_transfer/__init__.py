"""Moves sealed KV blocks from one worker's pool into another's, and checks them before they are used."""
