"""Has every worker measure the ways on which blocks may come to it, once in the life of either worker.

Life of a link here: two workers are alive that could hand blocks over -> the importer is asked to measure the link from
the exporter (`cluster_rpc.link_service`), a few links at a time, those of hand-overs (prefill to decode) before those
that only a fetch would use -> what it learned comes back with its status, to every router. An importer remembers, so a
second router costs nothing. A link that cannot be measured, or whose rate had a bad moment, is asked for again, each
time later, a few times; requests do not wait for any of it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from cluster_core.identity import Incarnation, Role
from cluster_rpc.v1 import link_pb2
from router.membership import Membership, Worker

logger = logging.getLogger(__name__)

AT_A_TIME = 4
FETCH_LINKS_WORKERS = 16
"""Among more workers than this, only the links of hand-overs are measured: those of fetches grow with the square."""
CALL_TIMEOUT_S = 15.0
FIRST_PAUSE_S = 1.0
PAUSE_GROWTH = 4.0
MOST_TRIES = 5
LOOK_S = 5.0
"""How long nothing may have changed before the workers are looked at all the same."""

_Link = tuple[Incarnation, Incarnation]
"""The lives of importer and exporter."""


@dataclass(slots=True)
class _Progress:
    """What became of a link."""

    tries: int = 0
    under_way: bool = False
    settled: bool = False
    again_at: float = 0.0


class LinkSurvey:
    """Runs from `start` to `close`, on the event loop of the membership."""

    def __init__(self, membership: Membership, clock: Callable[[], float]) -> None:
        self._membership = membership
        self._clock = clock
        self._links: dict[_Link, _Progress] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._look_again = asyncio.Event()

    def start(self) -> None:
        """Begin to look."""
        self._looking = asyncio.get_running_loop().create_task(self._run(), name="link survey")

    async def close(self) -> None:
        """Stop, and give up what is being measured."""
        tasks = [*self._calls, *([self._looking] if self._looking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_until_measured(self, timeout_s: float) -> bool:
        """Wait until every hand-over link of the workers that are there was tried; False when that took too long."""
        give_up_at = self._clock() + timeout_s
        while any(not self._progress(*pair).tries for pair in self._handover_pairs()):
            left_s = give_up_at - self._clock()
            if left_s <= 0:
                return False
            await self._wait_for_news(left_s)
        return True

    async def _run(self) -> None:
        while True:
            now = self._clock()
            due = [pair for pair in self._pairs() if self._is_due(self._progress(*pair), now)]
            for importer, exporter in due[: AT_A_TIME - len(self._calls)]:
                progress = self._progress(importer, exporter)
                progress.under_way = True
                call = asyncio.get_running_loop().create_task(self._measure(importer, exporter, progress))
                self._calls.add(call)
                call.add_done_callback(self._call_over)
            waits = [each.again_at - now for each in self._links.values() if not each.settled and each.again_at > now]
            await self._wait_for_news(min([LOOK_S, *waits]))

    async def _wait_for_news(self, timeout_s: float) -> None:
        """Wait until a worker changed, a measurement is over, or the time is."""
        news = asyncio.ensure_future(self._look_again.wait())
        change = asyncio.ensure_future(self._membership.wait_for_change(timeout_s))
        try:
            await asyncio.wait({news, change}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            change.cancel()

    def _call_over(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        self._look_again.set()
        self._look_again = asyncio.Event()

    async def _measure(self, importer: Worker, exporter: Worker, progress: _Progress) -> None:
        record = exporter.record
        request = link_pb2.CalibrateLinkRequest(
            worker_id=record.worker_id, incarnation=record.incarnation, address=record.address
        )
        try:
            report = await importer.connection.calibrate(request, timeout=CALL_TIMEOUT_S)
            progress.settled = report.settled
            logger.info("%s", _sentence(importer, exporter, report))
        except grpc.aio.AioRpcError as error:
            progress.settled = error.code() is grpc.StatusCode.UNIMPLEMENTED
            logger.info(
                "the link from %s to %s was not measured (%s: %s)",
                record.worker_id,
                importer.record.worker_id,
                error.code().name,
                error.details(),
            )
        except grpc.aio.UsageError:
            pass  # the channel was closed: the importer is gone
        finally:
            progress.under_way = False
            progress.again_at = self._clock() + FIRST_PAUSE_S * PAUSE_GROWTH**progress.tries
            progress.tries += 1
            progress.settled = progress.settled or progress.tries >= MOST_TRIES

    def _pairs(self) -> Iterator[tuple[Worker, Worker]]:
        """Yield every (importer, exporter) that there is, the most useful first; forget the links of the gone."""
        alive = [worker for worker in self._membership.workers() if worker.alive and worker.refusal is None]
        lives = {worker.record.incarnation for worker in self._membership.workers()}
        self._links = {link: each for link, each in self._links.items() if lives.issuperset(link)}
        yield from self._handover_pairs()
        if len(alive) > FETCH_LINKS_WORKERS:
            return
        for importer in alive:
            for exporter in alive:
                if importer is not exporter and not _hands_over(importer, exporter) and _can_move(importer, exporter):
                    yield importer, exporter

    def _handover_pairs(self) -> Iterator[tuple[Worker, Worker]]:
        alive = [worker for worker in self._membership.workers() if worker.alive and worker.refusal is None]
        for importer in alive:
            for exporter in alive:
                if _hands_over(importer, exporter) and _can_move(importer, exporter):
                    yield importer, exporter

    def _progress(self, importer: Worker, exporter: Worker) -> _Progress:
        link = (importer.record.incarnation, exporter.record.incarnation)
        found = self._links.get(link)
        if found is None:
            found = self._links[link] = _Progress()
        return found

    def _is_due(self, progress: _Progress, now: float) -> bool:
        return not progress.settled and not progress.under_way and progress.again_at <= now


def _hands_over(importer: Worker, exporter: Worker) -> bool:
    return importer.record.role is Role.DECODE and exporter.record.role is Role.PREFILL


def _can_move(importer: Worker, exporter: Worker) -> bool:
    return importer.record.transport == exporter.record.transport


def _sentence(importer: Worker, exporter: Worker, report: link_pb2.LinkReport) -> str:
    link = f"{exporter.record.worker_id} to {importer.record.worker_id}: {report.lane or report.transport}"
    rates = f"{report.large_in_bytes_per_s / 1e9:.2f} GB/s, round trip {report.round_trip_s * 1e6:.0f} us"
    return f"{link}, {rates}" + (f"; {report.warning}: {report.cure}" if report.warning else "")
