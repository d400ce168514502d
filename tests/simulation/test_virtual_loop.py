"""Time jumps, hosts have clocks of their own, stand still and die."""

import asyncio

import pytest

from simulation.virtual_loop import CURRENT, Host, Livelock, VirtualLoop


@pytest.fixture
def loop() -> VirtualLoop:
    return VirtualLoop(pytest.fail)


def run(loop: VirtualLoop, until_s: float) -> None:
    loop.run(until_s, None)


async def note_at(times: list[float], loop: VirtualLoop, *pauses_s: float) -> None:
    for pause_s in pauses_s:
        await asyncio.sleep(pause_s)
        times.append(round(loop.now, 6))


def start(loop: VirtualLoop, host: Host, times: list[float], *pauses_s: float) -> None:
    loop.on_host(host, 0.0, lambda: loop.create_task(note_at(times, loop, *pauses_s)))


def test_an_hour_takes_no_time(loop: VirtualLoop) -> None:
    times: list[float] = []
    start(loop, Host("a"), times, 3600.0, 1.0)
    run(loop, 4000.0)
    assert times == [3600.0, 3601.0]
    assert loop.now == 4000.0


def test_a_fast_clock_makes_waits_short(loop: VirtualLoop) -> None:
    times: list[float] = []
    start(loop, Host("a", speed=1.25, offset_s=50.0), times, 1.0)
    run(loop, 10.0)
    assert times == [0.8]


def test_whoever_is_called_at_a_time_finds_that_it_has_come(loop: VirtualLoop) -> None:
    early: list[float] = []

    def ask(when: float) -> None:
        if loop.time() < when:
            early.append(when)

    def call_at(whens: list[float]) -> None:
        for when in whens:
            loop.call_at(when, ask, when)

    for number in range(20):
        host = Host("a", speed=0.9 + 0.01 * number, offset_s=0.37 * number)
        loop.on_host(host, 0.0, call_at, [host.offset_s + 0.001 * place for place in range(1, 1000)])
    run(loop, 10.0)
    assert not early


def test_a_paused_host_goes_on_where_it_stood(loop: VirtualLoop) -> None:
    times: list[float] = []
    host = Host("a")
    start(loop, host, times, 1.0, 1.0)
    loop.on_host(loop.world, 0.5, loop.pause, host)
    loop.on_host(loop.world, 3.0, loop.resume, host)
    run(loop, 10.0)
    assert times == [3.0, 4.0]


def test_a_dead_host_does_nothing_any_more(loop: VirtualLoop) -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(1.0)
        finally:
            done.append("cleaned up")

    host = Host("a")
    loop.on_host(host, 0.0, lambda: loop.create_task(work()))
    loop.on_host(loop.world, 0.5, loop.kill, host)
    run(loop, 10.0)
    assert not done
    assert len(host.running_tasks()) == 1
    CURRENT.set(loop.world)
    loop.demolish([host])
    assert done
    assert not host.running_tasks()


def test_going_in_circles_is_noticed(loop: VirtualLoop) -> None:
    def again() -> None:
        loop.call_soon(again)

    loop.on_host(loop.world, 0.0, again)
    with pytest.raises(Livelock):
        run(loop, 1.0)
