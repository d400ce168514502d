"""XXH3-128 of many blocks on a GPU, in Triton, equal byte for byte to what the library xxhash computes on a CPU.

The algorithm, for inputs of more than 240 bytes (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, "XXH3
algorithm description for large inputs"): eight accumulators take in a stripe of 64 bytes at a time, each stripe with
eight words of a secret that begins a word later than for the stripe before; after 16 stripes (a **step** of 1 KiB) they
are scrambled; in the end they are merged into two words. The secret is a table with the seed added to even words and
taken from odd ones.

Taking in is adding, so the sum over a step's stripes does not depend on the accumulators: `sum_stripes` computes the
sums of all steps of all blocks side by side, as fast as memory gives them, and `chain_steps` runs through the sums,
1/16 of the bytes, one step after the other. That chain, a few dozen clock ticks a step, is all that a block computes in
sequence. The last stripe, which may overlap the one before it, belongs to the sums of the last step.

Lengths are multiples of 8, and rows lie at addresses that are. Only `digest_triton` imports this file. Triton's
interpreter runs it on the CPU where ``TRITON_INTERPRET=1`` is in the environment before triton is imported.
"""

import triton
import triton.language as tl
from triton.language import constexpr

# A kernel's arguments are its memory, its sizes and what is fixed for good; it cannot take them as one value.
# Constants are in capitals, as is the custom in Triton.
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0913, PLR0917

SECRET_WORDS = 24
STRIPES = 16
"""Of a step."""
LANES = 8
"""Accumulators, and words of a stripe."""

_STRIPES: constexpr = constexpr(STRIPES)
_LANES: constexpr = constexpr(LANES)
# Places in `words`: the secret, the accumulators' first values, and what the two merges start with.
_FIRST_VALUES: constexpr = constexpr(SECRET_WORDS)
_MERGES: constexpr = constexpr(SECRET_WORDS + LANES)
# Bytes of the secret at which the words begin that are used outside the stripes: all of them 64 bytes.
_SCRAMBLE_AT: constexpr = constexpr(128)
_LAST_STRIPE_AT: constexpr = constexpr(121)
_LOW_MERGE_AT: constexpr = constexpr(11)
_HIGH_MERGE_AT: constexpr = constexpr(117)
_SCRAMBLE_PRIME: constexpr = constexpr(0x9E3779B1)
_AVALANCHE_PRIME: constexpr = constexpr(0x165667919E3779F9)


@triton.jit
def _secret_word(words, seed, place):
    """Return word ``place`` of the secret of ``seed``."""
    word = tl.load(words + place)
    return tl.where(place % 2 == 0, word + seed, word - seed)


@triton.jit
def _secret_at(words, seed, lane, BYTE: constexpr):
    """Return the eight words of the secret that begin at ``BYTE``, which need not be a multiple of 8."""
    word = _secret_word(words, seed, lane + BYTE // 8)
    if BYTE % 8:
        following = _secret_word(words, seed, lane + (BYTE // 8 + 1))
        word = (word >> (BYTE % 8 * 8)) | (following << (64 - BYTE % 8 * 8))
    return word


@triton.jit
def _half_product(mixed):
    """Return the product of the two halves of each word."""
    return (mixed & 0xFFFFFFFF) * (mixed >> 32)


@triton.jit
def sum_stripes(
    rows,  # the blocks, uint64
    asked,  # [blocks, 2] uint64: which row, and the seed
    words,  # [34] uint64: see above
    sums,  # [blocks, full steps + 1, 8] uint64: takes the sums
    row_stride,  # in words
    row_words,
    COLUMNS: constexpr,  # 8 lanes of some steps: what one turn takes
    TURNS: constexpr,
):
    """Grid: blocks, groups of steps."""
    block = tl.program_id(0).to(tl.int64)
    row = rows + tl.load(asked + 2 * block).to(tl.int64) * row_stride
    seed = tl.load(asked + 2 * block + 1)
    stripes = (row_words - 1) // _LANES  # without the last one
    full_steps = stripes // _STRIPES
    stripe = tl.arange(0, _STRIPES)[:, None]
    column = tl.arange(0, COLUMNS)
    lane = column % _LANES
    key = _secret_word(words, seed, stripe + lane[None, :])  # [STRIPES, COLUMNS]
    # Each word goes to its neighbour's accumulator as it is, and its product to its own.
    end = row + row_words - _LANES
    last = tl.load(end + lane) ^ _secret_at(words, seed, lane, _LAST_STRIPE_AT)
    last = _half_product(last) + tl.load(end + (lane ^ 1))
    for turn in range(TURNS):
        step = (tl.program_id(1) * TURNS + turn) * (COLUMNS // _LANES) + column // _LANES
        number = step[None, :] * _STRIPES + stripe
        there = number < stripes
        word = tl.load(row + number * _LANES + lane[None, :], mask=there, other=0)
        product = tl.sum(tl.where(there, _half_product(word ^ key), 0), 0)  # [COLUMNS]
        even, odd = tl.split(tl.reshape(tl.sum(word, 0), (COLUMNS // 2, 2)))
        total = product + tl.reshape(tl.join(odd, even), (COLUMNS,))
        total += tl.where(step == full_steps, last, 0)
        to_sums = (block * (full_steps + 1) + step) * _LANES + lane
        tl.store(sums + to_sums, total, mask=step <= full_steps)


@triton.jit
def _scrambled(accumulators, key):
    """Return the accumulators after a step."""
    return (accumulators ^ (accumulators >> 47) ^ key) * _SCRAMBLE_PRIME


@triton.jit
def _merged(accumulators, words, seed, start, lane, BYTE: constexpr):
    """Return a word a block: pairs of accumulators multiplied to 128 bits, folded and added up, and mixed."""
    keyed = accumulators ^ _secret_at(words, seed, lane, BYTE)
    one, other = tl.split(tl.reshape(keyed, (keyed.shape[0], _LANES // 2, 2)))
    word = start + tl.sum((one * other) ^ tl.umulhi(one, other), 1)
    word = (word ^ (word >> 37)) * _AVALANCHE_PRIME
    return word ^ (word >> 32)


@triton.jit(do_not_specialize=["blocks"])
def chain_steps(
    sums,  # as above
    asked,  # as above
    words,  # as above
    digests,  # [blocks, 2] uint64: takes the high and the low word
    blocks,
    row_words,
    BLOCKS: constexpr,  # that one program takes
    STEPS: constexpr,  # whose sums are fetched together
):
    """Grid: groups of blocks."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    there = block < blocks
    seed = tl.load(asked + 2 * block + 1, mask=there, other=0)
    lane = tl.arange(0, _LANES)[None, :]
    full_steps = (row_words - 1) // _LANES // _STRIPES
    place = sums + (block * (full_steps + 1) * _LANES)[:, None] + lane  # [BLOCKS, LANES]
    key = _secret_at(words, seed[:, None], lane, _SCRAMBLE_AT)
    accumulators = tl.load(words + _FIRST_VALUES + lane) + tl.zeros((BLOCKS, _LANES), tl.uint64)
    together = full_steps // STEPS * STEPS
    for first in range(0, together, STEPS):
        for step in tl.static_range(STEPS):  # unrolled, so that none of the loads waits for what comes before it
            total = tl.load(place + (first + step) * _LANES, mask=there[:, None], other=0)
            accumulators = _scrambled(accumulators + total, key)
    for step in range(together, full_steps):
        total = tl.load(place + step * _LANES, mask=there[:, None], other=0)
        accumulators = _scrambled(accumulators + total, key)
    accumulators += tl.load(place + full_steps * _LANES, mask=there[:, None], other=0)
    low = _merged(accumulators, words, seed[:, None], tl.load(words + _MERGES), lane, _LOW_MERGE_AT)
    high = _merged(accumulators, words, seed[:, None], tl.load(words + _MERGES + 1), lane, _HIGH_MERGE_AT)
    tl.store(digests + 2 * block, high, mask=there)
    tl.store(digests + 2 * block + 1, low, mask=there)
