"""An event loop whose clock jumps: every wait costs no time, and the same events come in the same order every time.

When nothing is ready, the clock moves to the next timer. So "everything that can happen now has happened" is a sleep of
next to nothing, and a minute of deadlines passes in a millisecond. No thread and no socket may be used on it.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_INSTANT_S = 1e-6

Result = TypeVar("Result")


class _JumpingSelector(selectors.SelectSelector):
    """Moves the clock by as much as it was asked to wait."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing will ever happen"
        self._jump(timeout)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """Used from outside: between two calls of its methods nothing runs."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.mistakes: list[str] = []
        """What nobody caught."""
        super().__init__(_JumpingSelector(self._jump))
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._now_s

    def do(self, act: Callable[[], Result]) -> Result:
        """Call ``act`` on the loop, then let everything happen that follows at once."""

        async def acting() -> Result:
            return act()

        return self.finish(acting())

    def finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run ``work`` to its end, then let everything happen that follows at once."""
        result = self.run_until_complete(work)
        self.settle()
        return result

    def settle(self) -> None:
        """Let everything happen that can happen now."""
        self.advance(_INSTANT_S)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.run_until_complete(asyncio.sleep(seconds))
        assert not self.mistakes, self.mistakes

    def shut(self) -> None:
        """Cancel what still runs, and close."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.wait(tasks))
        self.close()

    def _jump(self, seconds: float) -> None:
        self._now_s += max(0.0, seconds)

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.mistakes.append(f"{context.get('message')}: {context.get('exception')!r}")
