"""Who is let in, who waits, who is refused."""

import asyncio
from dataclasses import replace

import pytest

from cluster_core.errors import Overloaded
from router.admission import Admission
from router.settings import RouterSettings

SETTINGS = RouterSettings(max_live_requests=1, max_queued_requests=3)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Doors:
    """Requests by name that enter when they are let in and stay until told to leave."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.entered: list[str] = []

    async def arrive(self, name: str, priority: int = 0) -> None:
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._stay(name, priority))
        await asyncio.sleep(0)

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)

    async def _stay(self, name: str, priority: int) -> None:
        async with self._admission.place(priority):
            self.entered.append(name)
            await self._leave[name].wait()


async def test_the_queue_is_served_by_priority_and_then_by_arrival() -> None:
    admission = Admission(SETTINGS, Clock())
    doors = Doors(admission)
    await doors.arrive("first")
    for name, priority in (("late", 7), ("plain", 3), ("urgent", 0)):
        await doors.arrive(name, priority)
    assert (admission.live, admission.queued) == (1, 3)
    for name in ("first", "urgent", "plain", "late"):
        await doors.leave(name)
    assert doors.entered == ["first", "urgent", "plain", "late"]
    assert (admission.live, admission.queued) == (0, 0)


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    clock = Clock()
    admission = Admission(SETTINGS, clock)
    doors = Doors(admission)
    for name in "abcd":
        await doors.arrive(name)
    with pytest.raises(Overloaded, match="1 requests are served and 3 wait") as refused:
        async with admission.place(0):
            pass
    assert refused.value.retry_after_s == pytest.approx(4.0)
    for name in "abcd":
        await doors.leave(name)


async def test_a_request_that_waited_too_long_is_refused() -> None:
    admission = Admission(replace(SETTINGS, queue_timeout_s=0.01), Clock())
    doors = Doors(admission)
    await doors.arrive("a")
    with pytest.raises(Overloaded, match="waited"):
        async with admission.place(0):
            pass
    assert admission.queued == 0
    await doors.leave("a")
    assert admission.live == 0


async def test_who_is_cancelled_in_the_queue_leaves_nothing_behind() -> None:
    admission = Admission(SETTINGS, Clock())
    doors = Doors(admission)
    for name in "abc":
        await doors.arrive(name)
    await doors.cancel("b")
    assert admission.queued == 1
    await doors.leave("a")
    assert doors.entered == ["a", "c"]
    await doors.leave("c")
    assert (admission.live, admission.queued) == (0, 0)


async def test_a_place_given_to_one_who_is_just_cancelled_goes_to_the_next() -> None:
    admission = Admission(SETTINGS, Clock())
    doors = Doors(admission)
    for name in "abc":
        await doors.arrive(name)
    doors._leave["a"].set()
    await asyncio.sleep(0)
    doors._tasks["b"].cancel()
    await asyncio.gather(doors._tasks["a"], doors._tasks["b"], return_exceptions=True)
    await doors.leave("c")
    assert doors.entered[-1] == "c"
    assert (admission.live, admission.queued) == (0, 0)
