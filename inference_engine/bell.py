"""Tells whoever listens that something changed: blocks came free, a request arrived, a stream has room again."""

from collections.abc import Callable


class Bell:
    """Ringing calls every listener. Listeners only take note; they never ring."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` at every ring from now on."""
        self._listeners.append(listener)

    def ring(self) -> None:
        """Call the listeners."""
        for listener in self._listeners:
            listener()
