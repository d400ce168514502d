"""What happened in one run, moment by moment: for a reader, and to compare two runs."""

import hashlib
from typing import Any

_SHOWN_ARGUMENTS = 12


class History:
    """An append-only list of events."""

    def __init__(self) -> None:
        self.closed = False
        """Nothing is written down any more: the run is over."""
        self._events: list[tuple[float, str, tuple[Any, ...]]] = []

    def __len__(self) -> int:
        return len(self._events)

    def note(self, moment_s: float, what: str, *details: Any) -> None:
        """Write an event down. Details are plain values: names, numbers."""
        if not self.closed:
            self._events.append((moment_s, what, details))

    def fingerprint(self) -> str:
        """Return a digest of everything that was written down: equal for equal histories."""
        digest = hashlib.blake2b(digest_size=16)
        for event in self._events:
            digest.update(repr(event).encode())
        return digest.hexdigest()

    def lines(self) -> list[str]:
        """Return one line an event: milliseconds, what, details."""
        return [
            f"{moment_s * 1000:10.2f} ms  {what:<14} {' '.join(str(each) for each in details[:_SHOWN_ARGUMENTS])}"
            for moment_s, what, details in self._events
        ]
