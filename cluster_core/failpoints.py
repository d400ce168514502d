"""Places at which a test may stop, slow, fail or kill this process on purpose.

Off, which is always, a place costs one look at a global: nobody turns failpoints on but a process's ``__main__``, for
whom started it with a control socket (`cluster_core.failpoint_control`), which is refused where others could reach it.

A test *arms* a name there, *waits* until the process has come to the place, acts, and *releases*. The three kinds of
place differ in what may happen at them:

* in a coroutine (`reach`, `copies`): the task alone waits, the process goes on;
* in an engine's thread (`hit`): the thread alone waits, the process goes on;
* in a method that the event loop calls (`hit`, `corrupts`): nothing may wait there, but the whole process may be made
  to stall, end or be killed.

What makes no sense at a place is refused when it is armed. ``docs/failpoints.md`` lists the places.
"""

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NoReturn

from cluster_core.errors import LegFailed, PartUnavailable


class Action(Enum):
    """What happens at an armed place."""

    PAUSE = "pause"
    """Wait until the release."""
    SLEEP = "sleep"
    """Wait ``value`` seconds."""
    RAISE = "raise"
    """Fail as what the place does can fail."""
    KILL9 = "kill9"
    """Kill the process with SIGKILL."""
    EXIT = "exit"
    """End the process at once with the exit code ``value``."""
    CORRUPT = "corrupt"
    """Damage what is there."""
    DROP = "drop"
    """Lose the message."""
    DUP = "dup"
    """Do with the message twice what is done with it once."""


_END = frozenset({Action.SLEEP, Action.KILL9, Action.EXIT})
_WAIT = _END | {Action.PAUSE}
_FAIL = _WAIT | {Action.RAISE}
_MESSAGE = _WAIT | {Action.DROP, Action.DUP}

PLACES: Mapping[str, frozenset[Action]] = MappingProxyType(
    {
        "router.admit": _WAIT,
        "router.enqueue": _WAIT,
        "router.dispatch": _WAIT,
        "router.token.append": _MESSAGE,
        "router.token.send": _WAIT,
        "router.fin": _WAIT,
        "p.queue": _FAIL,
        "p.start": _END,
        "p.chunk": _FAIL,
        "p.seal": _END,
        "p.publish": _WAIT,
        "p.offer.sent": _FAIL,
        "p.free": _END,
        "xfer.connect": _FAIL,
        "xfer.post": _FAIL,
        "xfer.chunk": _FAIL,
        "xfer.landed": _FAIL,
        "xfer.verify": _END | {Action.CORRUPT},
        "xfer.accept": _FAIL,
        "xfer.ack": _MESSAGE,
        "d.reserve": _FAIL,
        "d.pull.start": _FAIL,
        "d.pull.mid": _FAIL,
        "d.first_step": _FAIL,
        "d.step": _FAIL,
        "d.preempt": _END,
        "d.fin": _FAIL,
        "redis.lookup": _FAIL,
        "redis.write": _FAIL,
        "redis.event": _MESSAGE,
        "engine.die_silently": frozenset({Action.PAUSE}),
        "engine.nan": frozenset({Action.CORRUPT}),
        "engine.slow": frozenset({Action.SLEEP}),
    }
)
"""Every place, with the actions that make sense at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a test asks for. It holds from the ``nth`` pass on, for ``times`` passes, 0 standing for all."""

    name: str
    action: Action
    nth: int = 1
    value: float = 0.0
    times: int = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` for what no place can do."""
        if self.name not in PLACES:
            message = f"{self.name}: there is no such failpoint; there are {', '.join(PLACES)}"
            raise ValueError(message)
        if self.action not in PLACES[self.name]:
            possible = ", ".join(sorted(action.value for action in PLACES[self.name]))
            message = f"{self.name}: {self.action.value} makes no sense there; possible are {possible}"
            raise ValueError(message)
        if self.nth < 1 or self.times < 0 or self.value < 0:
            message = f"{self.name}: nth counts from 1; times and value are 0 or more"
            raise ValueError(message)


class Armed:
    """An order that waits for its pass, or holds whoever came."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.passes = 0
        """Since it was armed."""
        self.hits = 0
        """Passes to which something was done."""
        self.released = threading.Event()
        self.on_release: list[Callable[[], None]] = []

    def take(self) -> bool:
        """Count a pass; say whether it is one of those that the order is about."""
        self.passes += 1
        late = self.passes - self.order.nth
        due = late >= 0 and (not self.order.times or late < self.order.times)
        self.hits += due
        return due


class Failpoints:
    """What is armed in this process, and how often each place was passed. Any thread may call."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._armed: dict[str, Armed] = {}
        self._passes: Counter[str] = Counter()

    def arm(self, order: Order) -> None:
        """Let ``order`` hold from now on, in place of an older one of its name, which is released."""
        with self._changed:
            self._release(order.name)
            self._armed[order.name] = Armed(order)

    def wait_until_hit(self, name: str, timeout_s: float) -> bool:
        """Wait until something was done to a pass; False when nothing was within ``timeout_s`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: name in self._armed and self._armed[name].hits > 0, timeout_s)

    def release(self, name: str) -> int:
        """Disarm ``name``, or everything where it is empty, and let go on who waits; return how many were hit."""
        with self._changed:
            return sum(self._release(each) for each in ([name] if name else list(self._armed)))

    def armed(self) -> list[Armed]:
        """Return what is armed."""
        with self._changed:
            return list(self._armed.values())

    def passes(self) -> dict[str, int]:
        """Return how often each place was passed since the process began."""
        with self._changed:
            return dict(self._passes)

    def take(self, name: str) -> Armed | None:
        """Count a pass of ``name``; return what is armed if it is about this pass."""
        assert name in PLACES, f"{name} is not in the list"
        with self._changed:
            self._passes[name] += 1
            armed = self._armed.get(name)
            if armed is None or not armed.take():
                return None
            self._changed.notify_all()
            return armed

    def when_released(self, armed: Armed, call: Callable[[], None]) -> None:
        """Call ``call``, in whatever thread, once ``armed`` is released; at once if it is."""
        with self._changed:
            if not armed.released.is_set():
                armed.on_release.append(call)
                return
        call()

    def _release(self, name: str) -> int:
        armed = self._armed.pop(name, None)
        if armed is None:
            return 0
        armed.released.set()
        for call in armed.on_release:
            call()
        return armed.hits


_present: Failpoints | None = None


def turn_on() -> Failpoints:
    """Turn failpoints on for the rest of this process's life."""
    global _present  # noqa: PLW0603  # one process, one set of failpoints; a place must not cost more than this look
    _present = _present or Failpoints()
    return _present


def are_on() -> bool:
    """Whether this process has failpoints: what would cost something without them need not be built."""
    return _present is not None


def hit(name: str) -> None:
    """Pass the place ``name``, in a thread that may wait or in a method of the event loop that may not."""
    if _present is not None and (armed := _present.take(name)) is not None:
        _act(armed)


def corrupts(name: str) -> bool:
    """Pass the place ``name``; say whether what is there is to be damaged."""
    if _present is None or (armed := _present.take(name)) is None:
        return False
    if armed.order.action is not Action.CORRUPT:
        _act(armed)
        return False
    return True


async def reach(name: str) -> None:
    """Pass the place ``name`` in a coroutine."""
    if _present is not None:
        await copies(name)


async def copies(name: str) -> int:
    """Pass the place ``name``; return how often its message is to be taken: once, unless it is dropped or doubled."""
    if _present is None or (armed := _present.take(name)) is None:
        return 1
    match armed.order.action:
        case Action.DROP:
            return 0
        case Action.DUP:
            return 2
        case Action.PAUSE:
            await _released(_present, armed)
        case Action.SLEEP:
            await asyncio.sleep(armed.order.value)
        case _:
            _act(armed)
    return 1


async def _released(failpoints: Failpoints, armed: Armed) -> None:
    loop = asyncio.get_running_loop()
    released = asyncio.Event()

    def tell() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(released.set)

    failpoints.when_released(armed, tell)
    await released.wait()


def _act(armed: Armed) -> None:
    order = armed.order
    match order.action:
        case Action.PAUSE:
            armed.released.wait()
        case Action.SLEEP:
            time.sleep(order.value)
        case Action.KILL9:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.EXIT:
            os._exit(int(order.value))
        case Action.RAISE:
            _fail(order.name)
        case action:
            message = f"{order.name} cannot {action.value}: the list of places says otherwise"
            raise AssertionError(message)


def _fail(name: str) -> NoReturn:
    message = f"failpoint {name}: failed on purpose"
    raise PartUnavailable(message) if name.startswith("redis.") else LegFailed(message)
