"""The pools' life: coming up, changing while serving, restarts, giving up. Actors and router are fakes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from cluster_core.errors import DeadlineExceeded, InvalidField, LegFailed, PartUnavailable
from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.workers import WorkerLoad
from cluster_launcher.progress import SilentProgress
from cluster_launcher.ray_pools import RayPools
from cluster_launcher.settings import PRIVATE_RAY_WORKERS, ClusterSettings
from cluster_launcher.worker_actors import ActorLife
from cluster_rpc.answers import ClusterView, WorkerView
from tests.eventually import eventually

HEALTHY = ActorLife(restarts=0, dead=False, waits_for_room=False, pid=1)


class FakeActors:
    """Actors that serve at once, unless they are told not to."""

    def __init__(self) -> None:
        self.alive: dict[WorkerId, Role] = {}
        self.ended: list[WorkerId] = []
        self.lives: dict[WorkerId, ActorLife] = {}
        self.silent: set[WorkerId] = set()
        self.broken: set[WorkerId] = set()
        self.refused: set[WorkerId] = set()
        self.looks: list[WorkerId] = []
        self.on_look: Callable[[WorkerId], Awaitable[None]] | None = None
        self.words = ""
        self.one_ended = asyncio.Event()

    def create(self, worker_id: WorkerId, role: Role) -> None:
        if worker_id in self.refused:
            message = "the actor class cannot be pickled"
            raise TypeError(message)
        self.alive[worker_id] = role

    async def describe(self, worker_id: WorkerId) -> Mapping[str, Any]:
        if worker_id in self.silent:
            await asyncio.Event().wait()
        if worker_id in self.broken:
            message = "a long trace\nValueError: the model is missing"
            raise ValueError(message)
        return {"worker_id": worker_id, "address": "127.0.0.1:1", "pid": 1}

    async def life(self, worker_id: WorkerId) -> ActorLife:
        self.looks.append(worker_id)
        if self.on_look is not None:
            await self.on_look(worker_id)
        return self.lives.get(worker_id, HEALTHY)

    async def last_words(self, worker_id: WorkerId) -> str:
        assert worker_id
        return self.words

    async def end(self, worker_id: WorkerId) -> None:
        if self.alive.pop(worker_id, None) is not None:
            self.ended.append(worker_id)
            self.one_ended.set()


class FakeRouter:
    """Lists the fake actors; a drained worker becomes idle after ``busy_looks`` looks."""

    def __init__(self, actors: FakeActors, busy_looks: int = 0) -> None:
        self._actors = actors
        self._busy_looks = busy_looks
        self.drained: list[WorkerId] = []
        self.unreachable: set[WorkerId] = set()
        self.lost: set[WorkerId] = set()
        self.fails_after_drain = False
        self.mute_looks = 0
        """So many looks get no answer in time."""

    async def list_workers(self) -> ClusterView:
        if self.drained and self.fails_after_drain:
            message = "no answer"
            raise PartUnavailable(message)
        self.mute_looks -= 1
        if self.mute_looks >= 0:
            message = "the router took too long"
            raise DeadlineExceeded(message)
        if self.drained:
            self._busy_looks -= 1
        workers = tuple(self._view(name) for name in self._actors.alive if name not in self.unreachable)
        return ClusterView(
            workers=workers, mode="SERVING", model="demo", live_requests=0, queued_requests=0, directory_url=""
        )

    async def drain(self, worker_id: WorkerId) -> bool:
        self.drained.append(worker_id)
        if self.fails_after_drain:
            message = "it could not be told"
            raise LegFailed(message)
        return True

    def _view(self, worker_id: WorkerId) -> WorkerView:
        draining = worker_id in self.drained
        return WorkerView(
            worker_id=worker_id,
            incarnation=Incarnation(1),
            role=self._actors.alive[worker_id],
            address="127.0.0.1:1",
            transport="ucx",
            state="lost" if worker_id in self.lost else "draining" if draining else "ready",
            load=WorkerLoad(running_requests=max(0, self._busy_looks) if draining else 1),
            pid=1,
        )


class Notes(SilentProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


class Clock:
    """Advances at every look, so that deadlines come without waiting."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def _pools(actors: FakeActors, notes: Notes | None = None, **settings: Any) -> RayPools:
    return RayPools(actors, ClusterSettings(**settings), notes or Notes(), clock=Clock(), look_period_s=0.0)


async def _serving(actors: FakeActors, router: FakeRouter, **settings: Any) -> RayPools:
    pools = _pools(actors, **settings)
    await pools.start()
    await pools.attach(router)
    return pools


async def test_the_pools_of_the_configuration_start() -> None:
    actors = FakeActors()
    records = await _pools(actors, prefill=1, decode=2).start()
    assert [record["worker_id"] for record in records] == ["prefill-0", "decode-0", "decode-1"]


async def test_growing_starts_only_what_is_missing() -> None:
    actors = FakeActors()
    pools = await _serving(actors, FakeRouter(actors))
    assert await pools.set_pools(2, 3) == (2, 3)
    assert sorted(actors.alive) == ["decode-0", "decode-1", "decode-2", "prefill-0", "prefill-1"]
    assert not actors.ended


async def test_shrinking_drains_the_newest_before_it_ends_it() -> None:
    actors = FakeActors()
    router = FakeRouter(actors, busy_looks=5)
    pools = await _serving(actors, router, decode=3)
    assert await pools.set_pools(1, 2) == (1, 2)
    assert router.drained == ["decode-2"]
    assert actors.ended == ["decode-2"]
    assert router._busy_looks <= 0, "it was still busy when it was ended"


async def test_a_worker_that_never_becomes_idle_is_ended_at_the_deadline() -> None:
    actors = FakeActors()
    pools = await _serving(actors, FakeRouter(actors, busy_looks=10**6), decode=2, drain_timeout_s=5.0)
    assert await pools.set_pools(1, 1) == (1, 1)


async def test_a_worker_that_fails_to_start_is_named_and_leaves_the_pools_as_they_were() -> None:
    actors = FakeActors()
    actors.broken.add(WorkerId("decode-2"))
    pools = await _serving(actors, FakeRouter(actors))
    with pytest.raises(PartUnavailable, match=r"^decode-2: did not start \(ValueError: the model is missing\)$"):
        await pools.set_pools(1, 3)
    assert sorted(pools.running) == ["decode-0", "decode-1", "prefill-0"]
    assert actors.ended == ["decode-2"]


async def test_the_last_words_of_a_dead_process_are_its_reason() -> None:
    actors = FakeActors()
    actors.silent.add(WorkerId("prefill-0"))
    actors.lives[WorkerId("prefill-0")] = ActorLife(restarts=1, dead=False, waits_for_room=False, pid=7)
    actors.words = "engine.device: no GPU here"
    with pytest.raises(PartUnavailable, match=r"engine\.device: no GPU here"):
        await _pools(actors).start()
    assert not actors.alive, "one that fails takes the others with it"


@pytest.mark.parametrize(("waits_for_room", "said"), [(True, "no node of the Ray cluster"), (False, "start_timeout_s")])
async def test_a_worker_that_does_not_come_is_told_with_its_cure(waits_for_room: bool, said: str) -> None:
    actors = FakeActors()
    actors.silent.add(WorkerId("decode-1"))
    actors.lives[WorkerId("decode-1")] = ActorLife(restarts=0, dead=False, waits_for_room=waits_for_room, pid=0)
    with pytest.raises(PartUnavailable, match=said):
        await _pools(actors, start_timeout_s=5.0).start()


async def test_a_new_worker_that_the_router_cannot_reach_is_taken_back() -> None:
    actors = FakeActors()
    router = FakeRouter(actors)
    pools = await _serving(actors, router, start_timeout_s=5.0)
    router.unreachable.add(WorkerId("decode-2"))
    with pytest.raises(PartUnavailable, match=r"decode-2.*router cannot reach it"):
        await pools.set_pools(1, 3)
    assert actors.ended == ["decode-2"]


async def test_a_router_that_is_too_busy_to_answer_is_asked_again() -> None:
    actors = FakeActors()
    router = FakeRouter(actors)
    pools = await _serving(actors, router)
    router.mute_looks = 3
    assert await pools.set_pools(1, 3) == (1, 3)


@pytest.mark.parametrize(
    ("prefill", "decode", "key"),
    [(1, 0, "decode"), (1, PRIVATE_RAY_WORKERS + 1, "decode"), (1000, 1, "prefill"), (-1, 1, "prefill")],
)
async def test_a_size_that_cannot_run_is_refused_by_its_key(prefill: int, decode: int, key: str) -> None:
    actors = FakeActors()
    pools = await _serving(actors, FakeRouter(actors))
    with pytest.raises(InvalidField) as refused:
        await pools.set_pools(prefill, decode)
    assert refused.value.field == key
    assert len(pools.running) == 3


async def test_a_worker_that_serves_nobody_goes_before_a_healthy_newer_one() -> None:
    actors = FakeActors()
    router = FakeRouter(actors)
    pools = await _serving(actors, router, decode=3)
    router.lost.add(WorkerId("decode-0"))
    assert await pools.set_pools(1, 2) == (1, 2)
    assert actors.ended == ["decode-0"]


async def test_a_second_worker_that_cannot_be_asked_for_takes_the_first_with_it() -> None:
    actors = FakeActors()
    pools = await _serving(actors, FakeRouter(actors))
    actors.refused.add(WorkerId("decode-3"))
    with pytest.raises(PartUnavailable, match=r"decode-3.*pickled"):
        await pools.set_pools(1, 4)
    assert actors.ended == ["decode-2"]
    assert sorted(pools.running) == ["decode-0", "decode-1", "prefill-0"]


async def test_a_router_that_fails_while_workers_drain_does_not_keep_them() -> None:
    actors = FakeActors()
    router = FakeRouter(actors)
    pools = await _serving(actors, router, decode=3, drain_timeout_s=5.0)
    router.fails_after_drain = True
    assert await pools.set_pools(1, 1) == (1, 1)
    assert sorted(actors.ended) == ["decode-1", "decode-2"]


async def test_a_caller_that_goes_away_does_not_leave_drained_workers_running() -> None:
    actors = FakeActors()
    router = FakeRouter(actors, busy_looks=10**6)
    pools = await _serving(actors, router, decode=3, drain_timeout_s=10.0**9)
    change = asyncio.ensure_future(pools.set_pools(1, 1))
    await eventually(lambda: len(router.drained) == 2)
    change.cancel()
    with pytest.raises(asyncio.CancelledError):
        await change
    assert not actors.ended
    router._busy_looks = 0
    assert await pools.set_pools(1, 1) == (1, 1)
    assert sorted(actors.ended) == ["decode-1", "decode-2"]
    assert len(router.drained) == 2, "the next change waits for the drain and finds nothing left to do"


async def test_closing_does_not_wait_for_a_drain() -> None:
    actors = FakeActors()
    router = FakeRouter(actors, busy_looks=10**6)
    pools = await _serving(actors, router, decode=2, drain_timeout_s=10.0**9)
    change = asyncio.ensure_future(pools.set_pools(1, 1))
    await eventually(lambda: router.drained == ["decode-1"])
    await pools.close()
    assert not actors.alive
    with pytest.raises(asyncio.CancelledError):
        await change


async def test_watching_outlives_a_worker_that_is_ended_while_it_is_looked_at() -> None:
    actors = FakeActors()
    pools = await _serving(actors, FakeRouter(actors))
    looked_at = asyncio.Event()
    ended = asyncio.Event()

    async def hold(worker_id: WorkerId) -> None:
        if worker_id == "decode-1":
            looked_at.set()
            await ended.wait()

    actors.on_look = hold
    watching = asyncio.ensure_future(pools.watch())
    await looked_at.wait()
    await pools.set_pools(1, 1)
    ended.set()
    before = len(actors.looks)
    await eventually(lambda: watching.done() or len(actors.looks) > before + 2)
    assert not watching.done()
    watching.cancel()


async def test_watching_outlives_a_ray_that_does_not_answer_and_says_so_once() -> None:
    actors = FakeActors()
    notes = Notes()
    pools = _pools(actors, notes)
    await pools.start()

    async def fail(worker_id: WorkerId) -> None:
        message = f"the control store is gone, {worker_id}"
        raise ConnectionError(message)

    actors.on_look = fail
    watching = asyncio.ensure_future(pools.watch())
    await eventually(lambda: watching.done() or len(actors.looks) > 9)
    assert not watching.done()
    watching.cancel()
    assert len(notes.said) == 3, "once for each worker"


async def test_changes_take_their_turn() -> None:
    actors = FakeActors()
    pools = await _serving(actors, FakeRouter(actors))
    grown, shrunk = await asyncio.gather(pools.set_pools(3, 4), pools.set_pools(1, 1))
    assert (grown, shrunk) == ((3, 4), (1, 1))


async def test_a_worker_beyond_its_restart_budget_is_given_up_and_told_of() -> None:
    actors = FakeActors()
    actors.words = "it hurts"
    notes = Notes()
    pools = _pools(actors, notes, restart_budget=2)
    await pools.start()
    actors.lives[WorkerId("decode-1")] = ActorLife(restarts=3, dead=False, waits_for_room=False, pid=7)
    watching = asyncio.ensure_future(pools.watch())
    await actors.one_ended.wait()
    watching.cancel()
    assert any("decode-1" in said and "it hurts" in said and "baton scale" in said for said in notes.said)
    assert sorted(pools.running) == ["decode-0", "prefill-0"]


async def test_close_ends_everything() -> None:
    actors = FakeActors()
    pools = await _serving(actors, FakeRouter(actors))
    await pools.close()
    assert not actors.alive
    assert not pools.running
