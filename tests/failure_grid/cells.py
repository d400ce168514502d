"""One cell of the grid: arm, ask, wait until hit, strike, release; then hold what followed against what must follow.

Life of a cell: nothing is held; the stage's failpoint is armed in all processes of its role; a request is asked and
stops there, others are asked beside it; the fault strikes; everything is released. Then the clients must have seen what
the oracle answers, or the beginning of it and the right end; everything must be given back in time; and the same
request, asked again under the same id, once whoever was killed runs again, must be answered in full.
"""

import asyncio
import time
from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from cluster_core.errors import BatonError
from cluster_rpc.client import BatonClient
from tests.failure_grid.armed_process import ArmedProcess
from tests.failure_grid.asked import MAX_TOKENS, Asked, Reading, begin, random_prompt
from tests.failure_grid.cutting_proxy import CuttingProxy
from tests.failure_grid.faults import ANSWER_S, FAULTS, FREE_AFTER_CRASH_S, FREE_S, STAGES, Victim
from tests.failure_grid.grid_cluster import CHUNK_TOKENS, LOOK_S, ROUTER, SHAPE, GridCluster

PROMPT_TOKENS = 6 * CHUNK_TOKENS + 4
SHARED_TOKENS = 3 * CHUNK_TOKENS
"""With which the prompts of one cell begin alike."""
HIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A place in the grid, and what it is run beside."""

    stage: str
    fault: str
    seed: int
    bystanders: int = 2
    """Requests that are served together with the one that is struck."""
    patience: float = 1.0
    """How many times the promised time it may take until all is free: more where others use the machine."""

    def asked(self, number: int = 0) -> Asked:
        """Return the request that is struck, or, from 1 on, one beside it."""
        prompt = random_prompt(self.seed, PROMPT_TOKENS, SHAPE.vocab_size)
        if number:
            own = random_prompt(1_000_000 * number + self.seed, PROMPT_TOKENS, SHAPE.vocab_size)
            prompt = prompt[:SHARED_TOKENS] + own
        return Asked(f"cell-{self.seed}" + (f"-beside-{number}" if number else ""), prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a cell."""

    stage: str
    fault: str
    seed: int
    failure: str
    """Why the cell failed; empty where it did not."""
    tokens: int
    """How many the client of the struck request got."""
    free_s: float
    """From the fault until nothing was held any more."""
    cell_s: float


async def run_cell(cluster: GridCluster, cell: Cell) -> Outcome:
    """Run one cell, then start again whoever was killed. Never raises for what the cell finds."""
    began, asked = time.monotonic(), cell.asked()
    failure, free_s = "", 0.0
    try:
        free_s = await _strike(cluster, cell, asked)
    except (AssertionError, BatonError, TimeoutError, OSError) as error:
        failure = f"{type(error).__name__}: {error}"
    await cluster.release()
    try:
        await cluster.start_again()
        await _ask_again(cluster, cell)
    except (AssertionError, BatonError, TimeoutError) as error:
        failure = failure or f"afterwards: {error}"
    return Outcome(
        stage=cell.stage,
        fault=cell.fault,
        seed=cell.seed,
        failure=failure,
        tokens=len(asked.tokens),
        free_s=free_s,
        cell_s=time.monotonic() - began,
    )


async def until_one_is_hit(armed: Collection[ArmedProcess], name: str, within_s: float = HIT_S) -> None:
    """Wait until one of these processes was hit at ``name``. Raises `AssertionError` when none is."""
    waits = [asyncio.create_task(each.ask(do="wait", name=name, timeout_s=within_s)) for each in armed]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in done:
            wait.result()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _strike(cluster: GridCluster, cell: Cell, asked: Asked) -> float:
    """Do what a cell is about; return how long it took until all was free."""
    before = await cluster.until_free(FREE_AFTER_CRASH_S)
    assert not before, f"before the cell: {before}"
    stage, fault = STAGES[cell.stage], FAULTS[cell.fault]
    armed = [process for name, process in cluster.processes.items() if name.startswith(stage.role)]
    for process in armed:
        await process.ask(do="arm", name=stage.failpoint, action="pause")
    async with AsyncExitStack() as exits:
        proxy = CuttingProxy(cluster.processes[ROUTER].address)
        through = await exits.enter_async_context(BatonClient(await exits.enter_async_context(proxy)))
        client = await exits.enter_async_context(cluster.client())
        reading = begin(asked, through, fault.timeout_s)
        exits.callback(reading.task.cancel)
        await until_one_is_hit(armed, stage.failpoint)
        victim = await _victim(cluster, client, proxy, reading)
        beside = await _ask_beside(exits, client, cell)
        await fault.strike(victim)
        struck = time.monotonic()
        await cluster.release()
        async with asyncio.timeout(ANSWER_S):
            await asyncio.gather(*(each.task for each in (reading, *beside)))
        within_s = cell.patience * fault.free_within_s
        held = await cluster.until_free(struck + within_s - time.monotonic())
        free_s = time.monotonic() - struck
    asked.check(cluster.answer(asked.prompt, MAX_TOKENS), fault.ends_with)
    for each in beside:
        each.asked.check(cluster.answer(each.asked.prompt, MAX_TOKENS), fault.others_end_with)
    assert not held, f"not free {within_s:g} s later: {held}"
    return free_s


async def _victim(cluster: GridCluster, client: BatonClient, proxy: CuttingProxy, reading: Reading) -> Victim:
    prefill, decode = "prefill-0", "decode-0"
    with suppress(BatonError):  # not placed yet
        for attempt in await client.get_placement(reading.asked.request_id):
            prefill, decode = attempt.chosen.prefill_worker or prefill, attempt.chosen.decode_worker
    return Victim(cluster=cluster, client=client, proxy=proxy, reading=reading, prefill=prefill, decode=decode)


async def _ask_beside(exits: AsyncExitStack, client: BatonClient, cell: Cell) -> list[Reading]:
    """Ask for other answers, to prompts that begin alike, and wait until the router serves them."""
    beside = []
    for number in range(1, cell.bystanders + 1):
        reading = begin(cell.asked(number), client, ANSWER_S)
        exits.callback(reading.task.cancel)
        beside.append(reading)
    async with asyncio.timeout(HIT_S):
        for each in beside:
            while not (each.task.done() or await _is_served(client, each.asked)):  # noqa: ASYNC110  # in another process
                await asyncio.sleep(LOOK_S)
    return beside


async def _is_served(client: BatonClient, asked: Asked) -> bool:
    try:
        return bool(await client.get_placement(asked.request_id))
    except BatonError:
        return False


async def _ask_again(cluster: GridCluster, cell: Cell) -> None:
    """Ask the same under the same id: what the fault has left, in caches or anywhere, must not show."""
    asked = cell.asked()
    async with cluster.client() as client:
        await asked.read(client, ANSWER_S)
    asked.check(cluster.answer(asked.prompt, MAX_TOKENS), None)
    held = await cluster.until_free(cell.patience * FREE_S)
    assert not held, f"asked again: not free {cell.patience * FREE_S:g} s later: {held}"
