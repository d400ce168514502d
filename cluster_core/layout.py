"""How a block's KV lies in memory.

A pool is one array ``[block, layer, k/v, kv_head, token, head_dim]``: a block with all its layers, keys and values is
one contiguous region, so a hand-over sends one message a block.
"""

import hashlib
from dataclasses import dataclass

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """The shape of a block. Two workers can hand blocks over only when their layouts are equal."""

    layers: int
    kv_heads: int
    head_dim: int
    block_size_tokens: int
    dtype: str
    window_tokens: int = 0
    """How many tokens, itself included, a token sees at most in any layer; 0 where some layer sees all before it."""

    @property
    def token_bytes(self) -> int:
        """Bytes of KV that one token takes, all layers, keys and values."""
        return self.layers * 2 * self.kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.block_size_tokens * self.token_bytes

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold ``tokens`` tokens."""
        return -(-tokens // self.block_size_tokens)

    def blocks_for_answers(self, prompt_tokens: int, max_tokens: int, choices: int) -> int:
        """How many blocks hold a prompt and ``choices`` answers to it, which share the prompt's full blocks."""
        shared = prompt_tokens // self.block_size_tokens
        return shared + choices * (self.blocks_for(prompt_tokens + max_tokens) - shared)

    def describe(self) -> str:
        """One line that names every field: equal layouts give equal lines."""
        return (
            f"layers={self.layers} kv_heads={self.kv_heads} head_dim={self.head_dim} "
            f"block_size_tokens={self.block_size_tokens} dtype={self.dtype} window_tokens={self.window_tokens}"
        )


def first_block_in_window(tokens: int, window_tokens: int, block_size_tokens: int) -> int:
    """Return the first block that any layer still reads once ``tokens`` tokens are computed; 0 without a window.

    The next token, at the position ``tokens``, sees the positions from ``tokens - window_tokens + 1`` on. A window of
    one token is treated as one of two, so that a sequence always keeps a block.
    """
    if not window_tokens:
        return 0
    return max(0, tokens - max(window_tokens, 2) + 1) // block_size_tokens


def blocks_in_window(window_tokens: int, block_size_tokens: int) -> int:
    """Return how many blocks a token and what it sees can touch at most."""
    return -(-(max(window_tokens, 2) - 1) // block_size_tokens) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What two workers must agree on beside the layout, and what the router must know of the model."""

    name: str
    fingerprint: str
    """Hex digest of the model's configuration and weight headers: another model, another fingerprint."""
    vocab_size: int
    max_context_tokens: int

    def root_hash_seed(self, layout: KvLayout) -> bytes:
        """Return the part of a root hash that model and layout decide: blocks of another model never match."""
        return hashlib.sha256(f"{self.fingerprint}|{layout.describe()}".encode()).digest()
