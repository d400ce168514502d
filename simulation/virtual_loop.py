"""An asyncio event loop without a clock of its own, on which several machines run side by side.

Nothing waits: when no callback is ready, the time jumps to the next timer. Callbacks run in the order in which they
became due, so one history follows from the program and its random numbers alone.

Every callback belongs to a *host*, which its context names. What a host's code starts (tasks, timers, futures) inherits
the host, so machines need no loops of their own. `asyncio.get_running_loop().time()` is the clock of the host that
asks: it may drift. A *paused* host's callbacks wait; a *dead* host's never run, which is what a crash is: no
``finally`` runs, nothing is given back. Only when the run is over they are let go, so that nothing of them is left to
the collector of garbage.
"""

import asyncio
import contextlib
import itertools
import math
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from functools import partial
from heapq import heappop, heappush
from typing import Any, TypeAlias, cast

MOST_CALLBACKS = 400_000
"""A run that takes more is going round in circles."""
ASKS_EVERY_S = 0.005
"""How often `VirtualLoop.run` asks whether it is done."""
_DEMOLITION_ROUNDS = 5


class Livelock(Exception):
    """The run does not come to rest."""


class Host:
    """One life of a machine: a clock, and whether its callbacks run."""

    def __init__(self, name: str, speed: float = 1.0, offset_s: float = 0.0) -> None:
        """``speed`` is how many seconds its clock counts in a true one."""
        self.name = name
        self.speed = speed
        self.offset_s = offset_s
        self.runs = True
        """False while it is paused, and for ever after a crash."""
        self.alive = True
        self.held: list[_Due] = []
        """What became due while it was paused, or after its death."""
        self.tasks: list[asyncio.Task[Any]] = []
        """Every task that was ever started: kept, so that a dead host's are not collected in the middle of a run."""
        self.context: Context = copy_context()
        self.context.run(CURRENT.set, self)

    def running_tasks(self) -> list["asyncio.Task[Any]"]:
        """Return the tasks that have not ended."""
        return [task for task in self.tasks if not task.done()]


CURRENT: ContextVar[Host] = ContextVar("host")


_Due: TypeAlias = "tuple[Any, tuple[Any, ...], Context] | _Handle"
"""A callback that is due, or will be: callback, arguments, context."""


class _Handle(list[Any]):
    """One that somebody may cancel. A list, which is made without a call."""

    def cancel(self) -> None:
        self[0] = None
        self[1] = ()

    def cancelled(self) -> bool:
        return self[0] is None


class VirtualLoop:
    """See the module. ``on_error`` gets what asyncio would log: an exception that nobody took.

    Has what tasks, futures and timeouts ask of an `asyncio.AbstractEventLoop`, and nothing of its I/O.
    """

    def __init__(self, on_error: Callable[[str], None]) -> None:
        self.now = 0.0
        """True time, in seconds."""
        self.world = Host("world")
        """Outside of all machines: whoever watches and disturbs them."""
        self.callbacks = 0
        self._on_error = on_error
        self._ready: deque[_Due] = deque()
        self._timers: list[tuple[float, int, _Due]] = []
        self._halted = 0
        """How many hosts are paused or dead. While there is none, no callback need be asked whose it is."""
        self._numbers = itertools.count()
        self._closed = self._stopped = False
        self._as_asyncio = cast("asyncio.AbstractEventLoop", self)
        self.create_future: Callable[[], asyncio.Future[Any]] = partial(asyncio.Future, loop=self._as_asyncio)
        """Returns a new future."""

    # What asyncio asks of a loop

    def time(self) -> float:
        """Return the time that the current host believes it is."""
        host = CURRENT.get()
        return self.now * host.speed + host.offset_s

    get_debug: Callable[[], bool] = bool
    """Returns False. Every future and task asks; this way no Python runs."""

    def is_running(self) -> bool:
        """Return True."""
        return True

    def is_closed(self) -> bool:
        """Say whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Forget what is due; what is scheduled from now on never runs."""
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def create_task(
        self,
        coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> "asyncio.Task[Any]":
        """Start a task of the current host."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self._as_asyncio, name=name or "task", context=context)
        CURRENT.get().tasks.append(task)
        return task

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        """Run a callback after those that are due. A future or a task, which names a context, gets no handle."""
        if context is not None:
            self._ready.append((callback, args, context))
            return None
        handle = _Handle((callback, args, copy_context()))
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        """Run a callback in ``delay`` seconds of the current host's clock."""
        if context is None:
            context = copy_context()
        handle = _Handle((callback, args, context))
        moment = self.now + delay / context[CURRENT].speed if delay > 0.0 else self.now
        heappush(self._timers, (moment, next(self._numbers), handle))
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        """Run a callback when the current host's clock says ``when``."""
        if context is None:
            context = copy_context()
        host = context[CURRENT]
        moment = (when - host.offset_s) / host.speed
        while moment * host.speed + host.offset_s < when:  # rounded down: the host would find that it is not yet time
            moment = math.nextafter(moment, math.inf)
        handle = _Handle((callback, args, context))
        heappush(self._timers, (moment if moment > self.now else self.now, next(self._numbers), handle))  # noqa: FURB136  # a call less
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tell of an exception that nobody took."""
        error = context.get("exception")
        told = f"{type(error).__name__}: {error}" if error is not None else ""
        self._on_error(f"{context.get('message')} {told}".strip())

    # What a simulation asks of it

    def on_host(self, host: Host, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback on ``host`` in ``delay_s`` true seconds."""
        self.at(self.now + delay_s, host, callback, args)

    def at(self, moment_s: float, host: Host, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Run a callback on ``host`` at the true time ``moment_s``, which has not passed."""
        heappush(self._timers, (moment_s, next(self._numbers), (callback, args, host.context)))

    def stop(self) -> None:
        """Let `run` return after this callback's moment."""
        self._stopped = True

    def pause(self, host: Host) -> None:
        """Let nothing run on a host until `resume`."""
        self._halted += host.runs
        host.runs = False

    def resume(self, host: Host) -> None:
        """Let a paused host go on: what has become due runs now."""
        if host.alive:
            self._halted -= not host.runs
            host.runs = True
            self._ready.extend(host.held)
            host.held.clear()

    def kill(self, host: Host) -> None:
        """Let nothing run on a host any more."""
        self._halted += host.runs
        host.alive = host.runs = False

    def demolish(self, hosts: list[Host]) -> None:
        """Cancel every task, those of the dead too, and let them end; what does not end soon is left."""
        for _ in range(_DEMOLITION_ROUNDS):
            running = [task for host in hosts for task in host.running_tasks()]
            if not running:
                return
            for host in hosts:
                host.alive = True
                self.resume(host)
            for task in running:
                task.cancel()
            self.callbacks = 0
            with contextlib.suppress(Livelock):
                self.run(self.now + 1.0)

    def run(self, until_s: float, done: Callable[[], bool] | None = None) -> None:
        """Run until the true time ``until_s``, or until `stop`, or until ``done`` says so, which is asked now and then.

        Raises `Livelock`.
        """
        before = events._get_running_loop()  # noqa: SLF001  # no other way to be the loop that is running
        events._set_running_loop(self._as_asyncio)  # noqa: SLF001  # as above
        timers, ready, ask_s = self._timers, self._ready, -math.inf
        self._stopped = False
        try:
            while True:
                self._run_ready()
                while timers and timers[0][2][0] is None:
                    heappop(timers)
                if self._stopped:
                    return
                if done is not None and self.now >= ask_s:
                    if done():
                        return
                    ask_s = self.now + ASKS_EVERY_S
                if not timers or timers[0][0] > until_s:
                    break
                self.now = moment = timers[0][0]
                while timers and timers[0][0] <= moment:
                    ready.append(heappop(timers)[2])
            self.now = max(self.now, until_s)
        finally:
            events._set_running_loop(before)  # noqa: SLF001  # as above

    def _run_ready(self) -> None:
        ready, most = self._ready, MOST_CALLBACKS - self.callbacks
        count = 0
        try:
            while ready:
                due = ready.popleft()
                callback, args, context = due
                if callback is None:
                    continue
                if self._halted and not (host := context[CURRENT]).runs:
                    host.held.append(due)
                    continue
                count += 1
                if count > most:
                    message = f"{MOST_CALLBACKS} callbacks, and no end"
                    raise Livelock(message)
                try:
                    context.run(callback, *args)
                except Exception as error:  # noqa: BLE001  # as asyncio does: told, and the loop goes on
                    self.call_exception_handler({"message": f"callback {callback!r} failed", "exception": error})
        finally:
            self.callbacks += count
