import asyncio
import subprocess
import sys
import threading
import time

import pytest

from cluster_core import failpoints
from cluster_core.errors import LegFailed, PartUnavailable
from cluster_core.failpoints import PLACES, Action, Failpoints, Order, are_on, copies, corrupts, hit, reach


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Failpoints:
    turned_on = Failpoints()
    monkeypatch.setattr(failpoints, "_present", turned_on)
    return turned_on


async def test_off_a_place_does_nothing() -> None:
    assert not are_on()
    hit("no such place")
    await reach("no such place")
    assert await copies("no such place") == 1
    assert not corrupts("no such place")


async def test_a_pause_in_a_coroutine_holds_its_task_alone(on: Failpoints) -> None:
    on.arm(Order(name="p.queue", action=Action.PAUSE))
    held = asyncio.create_task(reach("p.queue"))
    assert await asyncio.to_thread(on.wait_until_hit, "p.queue", 5.0)
    await asyncio.sleep(0)
    assert not held.done()
    await reach("p.queue")  # the second pass is not the one that was asked for
    assert on.release("p.queue") == 1
    async with asyncio.timeout(5):
        await held


async def test_who_is_cancelled_in_a_pause_goes(on: Failpoints) -> None:
    on.arm(Order(name="p.queue", action=Action.PAUSE))
    held = asyncio.create_task(reach("p.queue"))
    assert await asyncio.to_thread(on.wait_until_hit, "p.queue", 5.0)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    assert on.release("") == 1


def test_a_pause_in_a_thread_holds_the_thread_alone(on: Failpoints) -> None:
    on.arm(Order(name="d.step", action=Action.PAUSE, nth=2))
    passed = [threading.Event(), threading.Event()]

    def run() -> None:
        for each in passed:
            hit("d.step")
            each.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert passed[0].wait(5.0)
    assert on.wait_until_hit("d.step", 5.0)
    assert not passed[1].is_set()
    on.release("d.step")
    thread.join(5.0)
    assert passed[1].is_set()


def test_the_nth_pass_and_so_many_after_it(on: Failpoints) -> None:
    on.arm(Order(name="xfer.verify", action=Action.CORRUPT, nth=2, times=2))
    assert [corrupts("xfer.verify") for _ in range(5)] == [False, True, True, False, False]
    on.arm(Order(name="xfer.verify", action=Action.CORRUPT, nth=3, times=0))
    assert [corrupts("xfer.verify") for _ in range(5)] == [False, False, True, True, True]
    assert on.passes() == {"xfer.verify": 10}
    assert on.release("xfer.verify") == 3


async def test_a_message_is_dropped_or_doubled(on: Failpoints) -> None:
    on.arm(Order(name="xfer.ack", action=Action.DROP))
    assert [await copies("xfer.ack") for _ in range(2)] == [0, 1]
    on.arm(Order(name="xfer.ack", action=Action.DUP))
    assert [await copies("xfer.ack") for _ in range(2)] == [2, 1]


async def test_a_place_fails_as_what_it_does_can_fail(on: Failpoints) -> None:
    on.arm(Order(name="p.queue", action=Action.RAISE))
    on.arm(Order(name="redis.write", action=Action.RAISE))
    with pytest.raises(LegFailed, match=r"failpoint p\.queue"):
        await reach("p.queue")
    with pytest.raises(PartUnavailable, match=r"failpoint redis\.write"):
        await reach("redis.write")


async def test_a_sleep_is_as_long_as_was_asked(on: Failpoints) -> None:
    on.arm(Order(name="engine.slow", action=Action.SLEEP, value=0.01))
    on.arm(Order(name="p.queue", action=Action.SLEEP, value=0.01))
    began = time.monotonic()
    hit("engine.slow")
    await reach("p.queue")
    assert time.monotonic() - began >= 0.02


@pytest.mark.parametrize(("action", "code"), [("KILL9", -9), ("EXIT", 7)])
def test_a_process_ends_where_it_is_told_to(action: str, code: int) -> None:
    program = f"""
from cluster_core.failpoints import Action, Order, hit, turn_on
turn_on().arm(Order(name="p.free", action=Action.{action}, nth=2, value=7))
hit("p.free")
print("once", flush=True)
hit("p.free")
print("twice", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("once\n", code), ended.stderr


def test_what_no_place_can_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^p\.nowhere: there is no such failpoint; there are router\.admit, "):
        Order(name="p.nowhere", action=Action.PAUSE)
    with pytest.raises(ValueError, match=r"^p\.seal: pause makes no sense there; possible are exit, kill9, sleep$"):
        Order(name="p.seal", action=Action.PAUSE)
    with pytest.raises(ValueError, match="nth counts from 1"):
        Order(name="p.queue", action=Action.PAUSE, nth=0)


def test_every_action_makes_sense_somewhere() -> None:
    assert frozenset().union(*PLACES.values()) == frozenset(Action)


def test_arming_again_releases_who_waited_for_the_first(on: Failpoints) -> None:
    on.arm(Order(name="d.step", action=Action.PAUSE))
    thread = threading.Thread(target=hit, args=("d.step",))
    thread.start()
    assert on.wait_until_hit("d.step", 5.0)
    on.arm(Order(name="d.step", action=Action.PAUSE))
    thread.join(5.0)
    assert not thread.is_alive()
    assert not on.wait_until_hit("d.step", 0.0), "the new order was not hit yet"
