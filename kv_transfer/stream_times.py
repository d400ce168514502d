"""How an exporter tells an importer when something happened (`kv_transfer.import_times` is the other side).

The clocks of two workers do not agree on moments, so what travels is a span: from the moment when the importer's
opening was answered, by the exporter's clock. What happened before the stream was there has a negative one.
"""

from collections.abc import Callable


class StreamTimes:
    """One importer's stream by the exporter's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._came_s = self._answered_s = clock()
        self.pulled_s: float | None = None
        """When the first pull was heard, in seconds since the answer; None: not yet."""

    def came(self) -> None:
        """Note that the opening has come."""
        self._came_s = self._clock()

    def answered(self) -> float:
        """Note that it is answered now; returns how long it has waited for that."""
        self._answered_s = self._clock()
        return self._answered_s - self._came_s

    def pulled(self) -> None:
        """Note that a pull is heard."""
        if self.pulled_s is None:
            self.pulled_s = self.since_answer(self._clock())

    def since_answer(self, moment_s: float) -> float:
        """Return the seconds from the answer to a moment of the clock."""
        return moment_s - self._answered_s
