"""Who counts as alive, and what a new life, a lost stream, a dead directory and a drain do."""

import asyncio
from dataclasses import replace
from typing import cast

import grpc
import pytest

from cluster_core.errors import InvalidField, NoWorker, PartUnavailable
from cluster_core.identity import Role, WorkerId, new_incarnation
from cluster_core.workers import WorkerLoad
from cluster_rpc.errors import from_rpc_error
from cluster_rpc.v1 import cluster_pb2
from router.worker_connection import WorkerConnection
from router.worker_watch import Watch
from tests.router.fake_workers import LAYOUT, MODEL, FakeWorker, answer
from tests.router.router_harness import PATIENCE_S, SETTINGS, RouterHarness, running_router

PROMPT = [1, 2, 3]
NAME = WorkerId("decode-0")


async def states(router: RouterHarness) -> dict[str, str]:
    response = await router.cluster.ListWorkers(cluster_pb2.ListWorkersRequest())
    return {worker.worker_id: worker.state for worker in response.workers}


async def test_a_worker_is_ready_with_its_first_status_and_lost_with_its_stream() -> None:
    async with running_router() as router:
        worker = await router.add(NAME)
        assert await states(router) == {NAME: "ready"}
        await worker.crash()
        await router.until(lambda: router.core.membership.find(NAME).state == "lost")  # type: ignore[union-attr]
        assert router.core.membership.ready_views() == []
        assert await states(router) == {NAME: "lost"}


async def test_a_silent_worker_is_lost_and_comes_back_when_it_speaks() -> None:
    async with running_router(replace(SETTINGS, watch_period_s=0.02, watch_silence_periods=2)) as router:
        worker = await router.add(NAME)
        speaking = worker.status_allowed
        speaking.clear()
        await router.until(lambda: router.core.membership.find(NAME).state == "lost")  # type: ignore[union-attr]
        speaking.set()
        await router.until(lambda: router.core.membership.find(NAME).state == "ready")  # type: ignore[union-attr]


async def test_a_healthy_stream_outweighs_a_lost_registration() -> None:
    async with running_router() as router:
        await router.add(NAME)
        router.degraded = True
        router.core.membership.on_workers([])
        assert (await router.generate(PROMPT, 3)).token_ids == answer(PROMPT, 3)
        response = await router.cluster.ListWorkers(cluster_pb2.ListWorkersRequest())
        assert response.mode == "DEGRADED"
        assert [worker.state for worker in response.workers] == ["ready"]
        assert response.directory_url == "redis://somewhere"


async def test_a_lost_worker_whose_registration_has_run_out_is_forgotten() -> None:
    async with running_router(replace(SETTINGS, forget_lost_s=0.0)) as router:
        worker = await router.add(NAME)
        await worker.crash()
        router.workers.clear()
        router.register()
        await router.until(lambda: router.core.membership.find(NAME) is None)
        assert await states(router) == {}


async def test_a_draining_worker_that_has_left_is_forgotten_once() -> None:
    async with running_router() as router:
        worker = await router.add(NAME)
        known = router.core.membership.find(NAME)
        assert known is not None
        assert known.watching is not None
        worker.report(WorkerLoad(draining=True))
        await router.until(lambda: known.state == "draining")
        router.core.membership.on_workers([])
        worker.incarnation = new_incarnation()  # told of twice: the status is not this life's, and the stream is over
        worker.report(WorkerLoad(draining=True))
        await asyncio.wait((known.watching,), timeout=PATIENCE_S)
        assert known.watching.cancelled()
        assert router.core.membership.find(NAME) is None


async def test_an_address_that_went_to_another_name_stays_connected() -> None:
    async with running_router(replace(SETTINGS, forget_lost_s=0.0)) as router:
        old = await router.add(NAME)
        assert old.record is not None
        port = int(old.record.address.rpartition(":")[2])
        await old.crash()
        router.workers.clear()
        await router.until(lambda: router.core.membership.find(NAME).state == "lost")  # type: ignore[union-attr]
        heir = FakeWorker(worker_id="decode-1", role=Role.DECODE)
        await heir.start(port)
        router.workers.append(heir)
        router.register()
        await router.until(lambda: router.core.membership.find(NAME) is None)
        discards = [task for task in asyncio.all_tasks() if task.get_name() == "discard channel"]
        await asyncio.gather(*discards)
        assert (await router.generate(PROMPT, 3)).token_ids == answer(PROMPT, 3)
        assert await states(router) == {"decode-1": "ready"}


async def test_a_channel_that_cannot_be_used_does_not_end_the_watch() -> None:
    ends: asyncio.Queue[str] = asyncio.Queue()
    watch = Watch(
        connection=cast("WorkerConnection", ClosedConnection()),
        incarnation=new_incarnation(),
        settings=SETTINGS,
        on_status=lambda _status, _load: None,
        on_end=ends.put_nowait,
        on_silence=ends.put_nowait,
    )
    watching = asyncio.create_task(watch.run())
    async with asyncio.timeout(PATIENCE_S):
        assert [await ends.get(), await ends.get()] == ["its channel cannot be used (Channel is closed.)"] * 2
    watching.cancel()


class ClosedConnection:
    def watch(self, _: object) -> None:
        message = "Channel is closed."
        raise grpc.aio.UsageError(message)


async def test_a_new_life_takes_the_place_of_the_old_one_with_nothing_of_its_cache() -> None:
    async with running_router() as router:
        old = await router.add(NAME)
        hashes = [bytes([n]) * 16 for n in range(3)]
        router.core.index.stored(NAME, old.incarnation, hashes)  # type: ignore[arg-type]
        assert router.core.index.longest_prefix(hashes) == {NAME: 3}  # type: ignore[arg-type]
        await old.crash()
        router.workers.clear()
        new = await router.add(NAME)
        assert router.core.index.longest_prefix(hashes) == {}  # type: ignore[arg-type]
        assert [view.record.incarnation for view in router.core.membership.ready_views()] == [new.incarnation]
        router.core.membership.suspect(NAME, old.incarnation)
        assert await states(router) == {NAME: "ready"}


async def test_a_life_that_speaks_is_not_left_for_one_that_is_only_listed() -> None:
    async with running_router() as router:
        worker = await router.add(NAME)
        assert worker.record is not None
        members = router.core.membership
        dead = replace(worker.record, incarnation=new_incarnation(), address="127.0.0.1:9")
        members.on_workers([dead])
        assert await states(router) == {NAME: "ready"}
        assert (await router.generate(PROMPT, 3)).token_ids == answer(PROMPT, 3)
        watch_of_the_dead = [task for task in asyncio.all_tasks() if task.get_name() == f"watch {NAME}"]
        assert len(watch_of_the_dead) == 2
        members.on_workers([worker.record])
        await router.until(lambda: sum(task.done() for task in watch_of_the_dead) == 1)
        assert members.is_heard(worker.incarnation)
        members.on_workers([dead])
        await worker.crash()
        await router.until(lambda: members.find(NAME).record == dead)  # type: ignore[union-attr]
        assert await states(router) == {NAME: "lost"}


async def test_a_new_life_that_speaks_takes_the_place_of_one_that_speaks_too() -> None:
    async with running_router() as router:
        old = await router.add(NAME)
        router.workers.clear()
        new = await router.add(NAME)
        assert not router.core.membership.is_heard(old.incarnation)
        assert (await router.generate(PROMPT, 3)).token_ids == answer(PROMPT, 3)
        assert (len(old.orders), len(new.orders)) == (0, 1)
        await old.crash()


async def test_another_life_at_the_same_address_is_not_taken_for_the_registered_one() -> None:
    async with running_router() as router:
        worker = FakeWorker(worker_id=NAME, role=Role.DECODE)
        await worker.start()
        router.workers.append(worker)
        assert worker.record is not None
        router.core.membership.on_workers([replace(worker.record, incarnation=new_incarnation())])
        await router.until(lambda: worker.watchers == 0 and worker.watches)
        assert await states(router) == {NAME: "lost"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layout": replace(LAYOUT, block_size_tokens=32)}, "layout.block_size_tokens is 32, the router has 16"),
        ({"layout": replace(LAYOUT, dtype="bfloat16")}, "layout.dtype is bfloat16, the router has float32"),
        ({"model": replace(MODEL, fingerprint="beef")}, "model.fingerprint is beef, the router has f00d"),
    ],
)
async def test_a_worker_that_differs_is_listed_with_the_reason_and_never_used(
    fields: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_router(replace(SETTINGS, worker_wait_s=0.05)) as router:
        await router.add(NAME, **fields)
        assert await states(router) == {NAME: f"refused: {reason}"}
        assert reason in caplog.text
        with pytest.raises(NoWorker, match=reason):
            await router.generate(PROMPT, 3)


async def test_a_drained_worker_finishes_and_gets_nothing_more() -> None:
    async with running_router() as router:
        drained = await router.add(NAME)
        go = asyncio.Event()
        drained.on_token = lambda _: go.wait()
        running = asyncio.create_task(router.generate(PROMPT, 3))
        await router.until(lambda: drained.live_calls)
        other = await router.add("decode-1")
        response = await router.cluster.Drain(cluster_pb2.DrainRequest(worker_id=NAME))
        assert response.found
        assert (await states(router))[NAME] == "draining"
        for _ in range(3):
            await router.generate(PROMPT, 3)
        go.set()
        assert (await running).token_ids == answer(PROMPT, 3)
        assert (len(drained.orders), len(other.orders)) == (1, 3)
        assert not (await router.cluster.Drain(cluster_pb2.DrainRequest(worker_id="nobody"))).found


async def test_a_request_waits_for_the_first_worker_to_come() -> None:
    async with running_router() as router:
        waiting = asyncio.create_task(router.generate(PROMPT, 3))
        await router.until(lambda: router.core.admission.live)
        await router.add(NAME)
        assert (await waiting).token_ids == answer(PROMPT, 3)


async def test_a_report_reaches_the_balancer() -> None:
    async with running_router() as router:
        worker = await router.add(NAME)
        worker.report(WorkerLoad(queued_prefill_tokens=77))
        await router.until(lambda: router.core.membership.ready_views()[0].load.queued_prefill_tokens == 77)


class Pools:
    async def set_pools(self, prefill: int, decode: int) -> tuple[int, int]:
        return prefill, decode


async def test_pools_are_changed_by_whoever_started_them() -> None:
    async with running_router(pools=Pools()) as router:
        response = await router.cluster.SetPools(cluster_pb2.SetPoolsRequest(prefill=1, decode=3))
        assert (response.prefill, response.decode) == (1, 3)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await router.cluster.SetPools(cluster_pb2.SetPoolsRequest(prefill=1, decode=0))
        assert isinstance(from_rpc_error(refused.value), InvalidField)
    async with running_router() as router:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await router.cluster.SetPools(cluster_pb2.SetPoolsRequest(prefill=1, decode=1))
        assert isinstance(from_rpc_error(refused.value), PartUnavailable)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
