"""Threads that run one compiled function side by side.

They are Python's: compiled functions leave the interpreter's lock, and numba's own thread pool may not be entered by
two engines of one process at once. A function may have phases: its threads share out a phase's items with `take` and
wait for one another at its end with `meet`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from inference_engine.code_builder import emitted
from inference_engine.vector_rows import address_of

_LINE = 8  # numbers in a line of the cache
_SPINS = 4096
"""How often a waiting thread looks before it lets others have the core."""


class Seat(NamedTuple):
    """A thread's place in a team."""

    part: int
    """Which of the threads it is, from 0 on."""
    threads: int
    counters: npt.NDArray[np.int64]
    """Shared: the arrivals; then, a line of the cache each, the items taken in even and in odd phases."""


class ThreadTeam:
    """``threads`` threads, the caller's among them. One caller at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = ThreadPoolExecutor(threads - 1, "engine") if threads > 1 else None
        self._counters = np.zeros(3 * _LINE, np.int64)

    def run(self, function: Callable[..., None], *arguments: Any, threads: int = 0) -> None:
        """Call ``function(seat, phase, *arguments)`` in each thread, or in ``threads`` of them, and wait for all.

        ``phase`` is 0: the function's first, or its only one.
        """
        count = threads or self.threads
        self._counters[:] = 0
        calls = []
        for part in range(1, count):
            assert self._others is not None
            calls.append(self._others.submit(function, Seat(part, count, self._counters), 0, *arguments))
        function(Seat(0, count, self._counters), 0, *arguments)
        for call in calls:
            call.result()

    def close(self) -> None:
        """End the threads."""
        if self._others is not None:
            self._others.shutdown()


@emitted
def _add_one(_context: Any, address: Any) -> Any:
    """Add 1 to a counter that others count on too, and return what it was."""
    del address

    def generate(_: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        long = ir.IntType(64)
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], long.as_pointer()), long(1), "seq_cst")

    return types.int64(types.int64), generate


@emitted
def _read(_context: Any, address: Any) -> Any:
    """Return a counter that others count on too."""
    del address

    def generate(_: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@emitted
def _reset(_context: Any, address: Any) -> Any:
    """Set a counter to 0."""
    del address

    def generate(context: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        long = ir.IntType(64)
        builder.store_atomic(long(0), builder.inttoptr(arguments[0], long.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@emitted
def _let_others(_context: Any) -> Any:
    """Give the core away if anybody wants it."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Sequence[Any]) -> Any:
        name, number = "sched_yield", ir.IntType(32)
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(number, []), name)
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


@numba.njit(cache=True, nogil=True, error_model="numpy")
def meet(seat: Seat, phase: int) -> int:
    """Wait until every thread has ended ``phase``; return the next one. Phases count from 0."""
    start = address_of(seat.counters)
    everybody = seat.threads * (phase + 1)
    if _add_one(start) == everybody - 1:  # the last one; nobody takes items of a phase of this parity before the next
        _reset(start + 8 * _LINE * (1 + phase % 2))
        return phase + 1
    spins = 0
    while _read(start) < everybody:
        spins += 1
        if spins > _SPINS:
            _let_others()
    return phase + 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def take(seat: Seat, phase: int) -> int:
    """Return the next item of the phase, from 0 on; no two threads get the same."""
    item: int = _add_one(address_of(seat.counters) + 8 * _LINE * (1 + phase % 2))
    return item
