"""Which links are measured, in which order and how often, and what placing makes of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from cluster_core.errors import TransferFailed
from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.links import LinkReport
from cluster_core.workers import WorkerLoad, WorkerRecord
from cluster_rpc.link_messages import link_report_to_proto
from cluster_rpc.server import LINK
from cluster_rpc.v1 import link_pb2, link_pb2_grpc
from router import link_survey
from router.link_survey import AT_A_TIME, MOST_TRIES, LinkSurvey
from tests.router.fake_workers import LAYOUT, FakeWorker
from tests.router.router_harness import PATIENCE_S, RouterHarness, running_router


@dataclass(kw_only=True)
class LinkedWorker(FakeWorker, link_pb2_grpc.LinkServiceServicer):
    """A worker that can be asked to measure."""

    asked: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    allowed: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0
    settled_after: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.allowed.set()

    async def start(self, port: int = 0) -> WorkerRecord:
        self._server.add(LINK, self)
        return await super().start(port)

    async def CalibrateLink(self, request: link_pb2.CalibrateLinkRequest, _context: Any) -> link_pb2.LinkReport:  # noqa: N802
        self.asked.append(request.worker_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.allowed.wait()
        self.at_once -= 1
        if len(self.asked) <= self.failures:
            message = "a bad moment"
            raise TransferFailed(message)
        report = LinkReport(
            peer=WorkerId(request.worker_id),
            incarnation=Incarnation(request.incarnation),
            transport="loopback",
            fixed_s=0.001,
            bytes_per_s=2e9,
            settled=len(self.asked) >= self.settled_after,
        )
        return link_report_to_proto(report)


async def add(router: RouterHarness, worker: FakeWorker) -> Any:
    await worker.start()
    router.workers.append(worker)
    router.register()
    name = WorkerId(worker.worker_id)
    await router.until(lambda: (found := router.core.membership.find(name)) and found.alive)
    return worker


async def linked(router: RouterHarness, worker_id: str, **fields: Any) -> LinkedWorker:
    role = next(role for role in Role if worker_id.startswith(role.value))
    worker: LinkedWorker = await add(router, LinkedWorker(worker_id=worker_id, role=role, **fields))
    return worker


@asynccontextmanager
async def surveying(router: RouterHarness) -> AsyncIterator[LinkSurvey]:
    survey = LinkSurvey(router.core.membership, asyncio.get_running_loop().time)
    survey.start()
    try:
        yield survey
    finally:
        await survey.close()


async def test_every_link_is_measured_once_and_those_of_handovers_first() -> None:
    async with running_router() as router:
        workers = [await linked(router, name) for name in ("prefill-0", "prefill-1", "decode-0", "decode-1")]
        async with surveying(router) as survey:
            assert await survey.wait_until_measured(PATIENCE_S)
            assert [sorted(worker.asked[:2]) for worker in workers[2:]] == [["prefill-0", "prefill-1"]] * 2
            await router.until(lambda: sum(len(worker.asked) for worker in workers) == 12)
            newcomer = await linked(router, "decode-2")
            await router.until(lambda: len(newcomer.asked) == 4)
        for worker in [*workers, newcomer]:
            assert len(set(worker.asked)) == len(worker.asked)
            assert worker.worker_id not in worker.asked


async def test_a_new_life_is_measured_again() -> None:
    async with running_router() as router:
        exporter, importer = await linked(router, "prefill-0"), await linked(router, "decode-0")
        async with surveying(router) as survey:
            assert await survey.wait_until_measured(PATIENCE_S)
            await exporter.crash()
            router.workers.remove(exporter)
            router.gone.append(exporter)
            await linked(router, "prefill-0")
            await router.until(lambda: importer.asked.count("prefill-0") == 2)


async def test_few_are_measured_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_survey, "FETCH_LINKS_WORKERS", 0)
    async with running_router() as router:
        importer = await linked(router, "decode-0")
        importer.allowed.clear()
        for number in range(AT_A_TIME + 2):
            await add(router, FakeWorker(worker_id=f"prefill-{number}", role=Role.PREFILL))
        async with surveying(router) as survey:
            await router.until(lambda: importer.at_once == AT_A_TIME)
            assert not await survey.wait_until_measured(0.01)
            importer.allowed.set()
            assert await survey.wait_until_measured(PATIENCE_S)
        assert importer.most_at_once == AT_A_TIME
        assert len(importer.asked) == AT_A_TIME + 2


@pytest.mark.parametrize(("how", "times"), [({"failures": 2}, 3), ({"settled_after": 3}, 3), ({"failures": 99}, 5)])
async def test_a_bad_moment_is_tried_again_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, how: dict[str, int], times: int
) -> None:
    monkeypatch.setattr(link_survey, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(link_survey, "PAUSE_GROWTH", 1.0)
    monkeypatch.setattr(link_survey, "FETCH_LINKS_WORKERS", 0)
    assert times <= MOST_TRIES
    async with running_router() as router:
        await linked(router, "prefill-0")
        importer = await linked(router, "decode-0", **how)
        async with surveying(router) as survey:
            await router.until(lambda: all(each.settled for each in survey._links.values()) and survey._links)
            assert len(importer.asked) == times


async def test_who_cannot_measure_who_moves_otherwise_and_who_is_refused_are_left_alone() -> None:
    async with running_router() as router:
        importer = await linked(router, "decode-0")
        await add(router, FakeWorker(worker_id="prefill-0", role=Role.PREFILL))
        await linked(router, "prefill-1", layout=replace(LAYOUT, block_size_tokens=32))
        apart = await linked(router, "prefill-2")
        assert apart.record is not None
        apart.record = replace(apart.record, transport="nixl", incarnation=Incarnation(99))
        apart.incarnation = Incarnation(99)
        router.register()
        await router.until(lambda: router.core.membership.is_heard(Incarnation(99)))
        async with surveying(router) as survey:
            assert await survey.wait_until_measured(PATIENCE_S)
            await router.until(lambda: all(each.settled for each in survey._links.values()))
        assert importer.asked == ["prefill-0"]
        assert apart.asked == []


async def test_what_a_worker_knows_of_its_links_is_what_placing_goes_by() -> None:
    async with running_router() as router:
        known = LinkReport(
            peer=WorkerId("prefill-0"), incarnation=Incarnation(5), transport="ucx", fixed_s=0.002, bytes_per_s=3e9
        )
        unmeasured = LinkReport(peer=WorkerId("prefill-1"), incarnation=Incarnation(6), transport="ucx")
        rounds = replace(known, peer=WorkerId("prefill-2"), bytes_per_s=1e8, rounded_bytes_per_s=2e8)
        await router.add("decode-0", load=WorkerLoad(links=(known, unmeasured, rounds)))
        (view,) = router.core.membership.ready_views()
        assert view.links == {"prefill-0": (0.002, 3e9), "prefill-2": (0.002, 1e8)}
        assert view.rounding_links == {"prefill-2": (0.002, 2e8)}
