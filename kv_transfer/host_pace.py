"""How much is copied in one go, before the event loop sees to others: as much as takes two milliseconds here."""

SLICE_S = 0.002
FIRST_BYTES = 4 << 20
"""Before anything was measured: a millisecond where memory is as fast as that of most machines."""
FEWEST_BYTES, MOST_BYTES = 1 << 20, 16 << 20
_TELLING_BYTES = 1 << 20
"""What is shorter tells of other costs than those of bytes."""
_SHARE = 0.25
"""Of a new measurement in what is thought from then on."""


class Pace:
    """Learns from each slice. Processor time counts, with what hears of the blocks, and not waiting for a core."""

    def __init__(self) -> None:
        self.slice_bytes = FIRST_BYTES

    def note(self, moved_bytes: int, taken_s: float) -> None:
        """Learn that ``moved_bytes`` took ``taken_s``."""
        if moved_bytes >= _TELLING_BYTES and taken_s > 0:
            wanted = min(max(FEWEST_BYTES, moved_bytes * SLICE_S / taken_s), MOST_BYTES)
            self.slice_bytes += int(_SHARE * (wanted - self.slice_bytes))
