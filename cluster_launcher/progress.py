"""What a command says while parts start and stop. Facts go to standard output; progress goes to standard error."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console


class Progress(Protocol):
    """Where parts report."""

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[str], None]]:
        """Enclose the start or stop of a part. The callable that it gives says what is happening now."""
        ...

    def note(self, text: str) -> None:
        """Say one thing that happened."""
        ...


class SilentProgress:
    """For `--json`: nothing but errors is said."""

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[str], None]]:  # noqa: ARG002 - the protocol's parameter
        """Say nothing."""
        yield lambda _text: None

    def note(self, text: str) -> None:
        """Say nothing."""


class ConsoleProgress:
    """One line a part: a spinner per open part on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to ``console``, which should be standard error."""
        self._console = console
        self._clock = clock
        self._open: dict[str, str] = {}
        self._status = console.status("") if console.is_terminal else None

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[str], None]]:
        """Enclose a part's start: ends in one line with what it took, or in one that names it as failed."""
        began = self._clock()
        told = ""

        def tell(text: str) -> None:
            nonlocal told
            told = text
            self._open[name] = text
            self._refresh()

        tell("")
        try:
            yield tell
        except BaseException:
            self._close(name)
            self._console.print(f"[red]✗[/red] {name}: failed after {self._clock() - began:.1f} s", highlight=False)
            raise
        self._close(name)
        detail = f"  [dim]{told}[/dim]" if told else ""
        self._console.print(f"[green]✓[/green] {name}  {self._clock() - began:.1f} s{detail}", highlight=False)

    def note(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, highlight=False)

    def _close(self, name: str) -> None:
        self._open.pop(name, None)
        self._refresh()

    def _refresh(self) -> None:
        if self._status is None:
            return
        if self._open:
            self._status.update(", ".join(f"{name} {text}".strip() for name, text in self._open.items()))
            self._status.start()
        else:
            self._status.stop()
