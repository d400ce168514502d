"""Ctrl-C: once for an orderly end, twice for an immediate one."""

import asyncio
import os
import signal
import subprocess
import sys

import psutil
import pytest

from cluster_launcher.stop_signals import Stopped, StopSignals, wait_until_gone

TWICE = """
import asyncio, subprocess, sys
from cluster_launcher.stop_signals import StopSignals

async def stubborn():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    print(child.pid, flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("ending", flush=True)
        await asyncio.Event().wait()

asyncio.run(StopSignals().run(stubborn()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_the_first_signal_lets_the_work_clean_up(number: signal.Signals) -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            steps.append("cleaned up")

    with pytest.raises(Stopped):
        await StopSignals().run(work())
    assert steps == ["cleaned up"]


async def test_work_that_ends_by_itself_returns_its_result() -> None:
    async def work() -> int:
        return 7

    assert await StopSignals().run(work()) == 7


def test_the_second_signal_kills_the_descendants_and_leaves() -> None:
    process = subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert not psutil.wait_procs([child], timeout=5)[1]


def test_a_straggler_is_killed_and_named() -> None:
    deaf = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = asyncio.run(wait_until_gone([psutil.Process(deaf.pid)], grace_s=0.1))
    assert [process.pid for process in left] == [deaf.pid]
    assert deaf.wait(5) == -signal.SIGKILL
