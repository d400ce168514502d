"""Which blocks the block benchmark moves: the same lists for everybody who takes part.

Every process has a **pool**, larger than the last-level cache, whose 8-byte words are numbered. A **lot** is a list of
blocks of one size that move together, from places of one pool to places of another: adjacent ones (contiguous), or
places drawn at random without order (scattered). Lots of one kind have numbers, and each number has other places, so
that a lot finds in no cache what the lot before it left there. Both sides draw the places by themselves.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

KIB, MIB = 2**10, 2**20
SIZES = {"4KiB": 4 * KIB, "16KiB": 16 * KIB, "64KiB": 64 * KIB, "192KiB": 192 * KIB, "1MiB": MIB, "4MiB": 4 * MIB}
"""192 KiB is a block of the bench model."""
COUNTS = (1, 32, 2000)
LARGEST_LOT_BYTES = 384 * MIB
"""2,000 blocks of 1 MiB would not fit beside all the other pools; as many as this holds stand for them."""
POOL_BYTES = 512 * MIB
QUICK_POOL_BYTES = 64 * MIB
_TURN_BYTES = 16 * MIB
_MOST_LOTS = 32
IN_FLIGHT = 8
"""Lots that are under way at once, where several are."""
LOTS_OF_A_STREAM = 64
"""Moved one after another with so many under way."""

Memory = np.ndarray[Any, np.dtype[np.uint8]]
Places = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LotKind:
    """What the lots of one measurement have in common."""

    size: int
    """Bytes of a block."""
    count: int
    scattered: bool

    @property
    def lot_bytes(self) -> int:
        """Bytes of one lot."""
        return self.size * self.count

    @property
    def lots_a_turn(self) -> int:
        """How many lots one measurement has: of small ones many, of which the median counts."""
        return max(1, min(_MOST_LOTS, _TURN_BYTES // self.lot_bytes))

    def fitting(self, pool_bytes: int) -> "LotKind":
        """Return the same kind with no more blocks than three quarters of such a pool have."""
        most = max(1, pool_bytes * 3 // 4 // self.size)
        return LotKind(size=self.size, count=min(self.count, most), scattered=self.scattered)


def kind_name(size: str, count: int, *, scattered: bool) -> str:
    """Return the part of a case's name that says which lots it is about: ``64KiB.2000.scattered``."""
    at_most = min(count, LARGEST_LOT_BYTES // SIZES[size])
    return f"{size}.{at_most}.{'scattered' if scattered else 'contiguous'}"


KINDS = {
    kind_name(name, count, scattered=scattered): LotKind(
        size=size, count=min(count, LARGEST_LOT_BYTES // size), scattered=scattered
    )
    for name, size in SIZES.items()
    for count in COUNTS
    for scattered in (False, True)
}


SMALL_KINDS = tuple(
    kind_name(name, count, scattered=True)
    for name, counts in (("4KiB", (1, 32)), ("16KiB", (1, 32)), ("64KiB", (1, 32)), ("192KiB", (1,)), ("1MiB", (1,)))
    for count in counts
)
"""Lots so small that one at a time is mostly a matter of how long a message takes."""


def new_pool(pool_bytes: int) -> Memory:
    """Return a pool whose words are numbered from 0, so that every block tells which one it is."""
    return np.arange(pool_bytes // 8, dtype=np.uint64).view(np.uint8)


def places(kind: LotKind, number: int, pool_bytes: int) -> tuple[Places, Places]:
    """Return which blocks of the sending pool a lot has, and to which of the receiving pool they go."""
    random = np.random.default_rng((kind.size, kind.count, kind.scattered, number))
    total = pool_bytes // kind.size
    if kind.scattered:
        first, second = (random.choice(total, kind.count, replace=False) for _side in range(2))
        return first, second
    starts = random.integers(0, total - kind.count + 1, 2)
    first, second = (np.arange(start, start + kind.count, dtype=np.int64) for start in starts)
    return first, second


def blocks_of(pool: Any, size: int) -> Any:
    """Return the pool, an array or a tensor, as ``[blocks, size]`` bytes; what does not fill a block is left out."""
    return pool[: len(pool) // size * size].reshape(-1, size)


def check(pool: Any, kind: LotKind, sources: Places, targets: Places) -> None:
    """Raise `RuntimeError` unless the first and the last word of every block are those of its source."""
    words = kind.size // 8
    blocks = blocks_of(pool, kind.size)
    for word in (0, words - 1):
        piece = blocks[:, 8 * word : 8 * word + 8][targets]
        host = piece if isinstance(piece, np.ndarray) else piece.cpu().numpy()
        come = np.ascontiguousarray(host).view(np.uint64).ravel()
        if not np.array_equal(come, sources.astype(np.uint64) * np.uint64(words) + np.uint64(word)):
            message = f"blocks of {kind.size} bytes did not arrive as they were sent"
            raise RuntimeError(message)
