"""What weights and KV take of a GPU, how long KV takes on a wire, and what tensor parallelism allows. Arithmetic only.

KV of one token, with one number of keys and values for each layer, key head and dimension:
``2 * layers * kv_heads * head_dim`` numbers. With latent attention (MLA) a layer keeps one shared vector instead:
``layers * (latent_dim + rotated_dim)`` numbers. Sizes are bytes, GB are 10^9 bytes, and Gb/s are 10^9 bits a second of
line rate: a real link gives less.
"""

from dataclasses import dataclass

from cluster_core.layout import blocks_in_window, first_block_in_window

_BITS_PER_BYTE = 8
_GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedHeads:
    """Query heads that share key heads evenly: MHA where there are as many, MQA where there is one, GQA between."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentHeads:
    """Query heads that all read one latent vector a token (MLA)."""

    heads: int
    latent_dim: int
    rotated_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What of a model decides its memory."""

    name: str
    parameters: int
    attention: GroupedHeads | LatentHeads
    windows: tuple[int, ...]
    """For each layer how many tokens a token sees, itself included; 0: all before it."""
    max_context_tokens: int

    @property
    def layers(self) -> int:
        """How many layers keep KV."""
        return len(self.windows)

    @property
    def window_tokens(self) -> int:
        """The longest window where every layer has one, otherwise 0: older tokens are of no use to any layer."""
        return max(self.windows) if all(self.windows) else 0


def layer_token_numbers(attention: GroupedHeads | LatentHeads) -> int:
    """Return how many numbers one layer keeps of one token."""
    match attention:
        case GroupedHeads(kv_heads=kv_heads, head_dim=head_dim):
            return 2 * kv_heads * head_dim
        case LatentHeads(latent_dim=latent_dim, rotated_dim=rotated_dim):
            return latent_dim + rotated_dim


def token_bytes(shape: ModelShape, number_bytes: int) -> int:
    """Return the bytes of KV of one token, all layers, kept once: what a hand-over moves."""
    return shape.layers * layer_token_numbers(shape.attention) * number_bytes


def is_possible_degree(attention: GroupedHeads | LatentHeads, ranks: int) -> bool:
    """Say whether the heads can be split over ``ranks`` ranks evenly, key heads being repeated where they are fewer."""
    if attention.heads % ranks:
        return False
    if isinstance(attention, LatentHeads):
        return True
    return attention.kv_heads % ranks == 0 or ranks % attention.kv_heads == 0


def kv_heads_per_rank(attention: GroupedHeads, ranks: int) -> int:
    """Return the key heads that each rank keeps."""
    return max(1, attention.kv_heads // ranks)


def copies_of_kv(attention: GroupedHeads | LatentHeads, ranks: int) -> int:
    """Return how many ranks keep the same KV: a latent vector is read by every head, so every rank has all of it."""
    return ranks if isinstance(attention, LatentHeads) else max(1, ranks // attention.kv_heads)


def rank_token_bytes(shape: ModelShape, number_bytes: int, ranks: int) -> int:
    """Return the bytes of KV that one token takes on each of ``ranks`` ranks."""
    return token_bytes(shape, number_bytes) * copies_of_kv(shape.attention, ranks) // ranks


def seen_bytes(shape: ModelShape, tokens: int, number_bytes: int) -> int:
    """Return the bytes of KV that the layers can see of ``tokens`` tokens: those with a window only the window's."""
    seen = sum(min(tokens, window) if window else tokens for window in shape.windows)
    return seen * layer_token_numbers(shape.attention) * number_bytes


def held_blocks(shape: ModelShape, tokens: int, block_size_tokens: int) -> int:
    """Return the most blocks that a sequence holds while it grows to ``tokens`` tokens one by one.

    A block has all layers, so it can be given back early only where every layer has a window.
    """
    blocks = -(-tokens // block_size_tokens)
    return min(blocks, blocks_in_window(shape.window_tokens, block_size_tokens)) if shape.window_tokens else blocks


def moved_blocks(shape: ModelShape, prompt_tokens: int, block_size_tokens: int) -> int:
    """Return the blocks that the hand-over of a prompt moves to a worker that has none: those that are read again."""
    first = first_block_in_window(prompt_tokens, shape.window_tokens, block_size_tokens)
    return -(-prompt_tokens // block_size_tokens) - first


def transfer_s(moved_bytes: int, gigabits_per_s: float) -> float:
    """Return the seconds that ``moved_bytes`` take at line rate."""
    return moved_bytes * _BITS_PER_BYTE / (gigabits_per_s * _GIGA)


def hiding_gigabits_per_s(bytes_per_token: int, prefill_tokens_per_s: float) -> float:
    """Return the line rate at which KV leaves a prefill as fast as it is computed, however long the prompt is."""
    return bytes_per_token * prefill_tokens_per_s * _BITS_PER_BYTE / _GIGA


def step_floor_s(rank_weight_bytes: float, rank_kv_bytes: float, bandwidth_bytes_per_s: float) -> float:
    """Return the least seconds of a decode step: each rank reads its weights and the KV of its sequences once."""
    return (rank_weight_bytes + rank_kv_bytes) / bandwidth_bytes_per_s
