"""A prefill worker's life as a process: load, listen, register; drain, leave."""

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from block_directory.directory import BlockDirectory
from block_directory.joining import refuse_a_twin, refuse_other_layouts
from block_directory.publisher import Publisher
from block_directory.settings import DirectorySettings
from cluster_core.errors import WorkerLost
from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.workers import WorkerLoad, WorkerRecord
from cluster_rpc.channels import ChannelPool
from cluster_rpc.handoff_calls import HandoffCalls
from cluster_rpc.server import RpcServer
from cluster_rpc.worker_presence import speaks
from cluster_rpc.worker_process import reachable_host
from inference_engine.bell import Bell
from inference_engine.block_pool import BlockPool
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from inference_engine.engine_loader import ServingEngine
from inference_engine.engine_loop import EngineLoop
from kv_transfer.exporter import Exporter
from kv_transfer.hold_sweep import HoldSweep
from kv_transfer.importer import Importer
from kv_transfer.link_probe import LinkProbe
from kv_transfer.transport import Transport
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.settings import PrefillSettings

log = logging.getLogger(__name__)

SWEEP_S = 0.25
"""How often leases, holds and the engine's step are looked at."""

DRAIN_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Who the worker is and how it was told to work."""

    worker_id: WorkerId
    incarnation: Incarnation
    settings: PrefillSettings
    directory_settings: DirectorySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillParts:
    """The objects of a worker whose engine has been loaded; `prefill_worker.wiring.assemble` connects them."""

    bell: Bell
    pool: BlockPool
    exporter: Exporter
    importer: Importer
    borrowed: BorrowedPrefixes
    holds: HoldSweep
    calls: HandoffCalls
    links: LinkProbe
    channels: ChannelPool
    scheduler: PrefillScheduler
    loop: EngineLoop
    server: RpcServer


class PrefillWorker:
    """Starts the parts in order and ends them in the reverse order."""

    def __init__(
        self,
        site: Site,
        directory: BlockDirectory,
        transport: Transport,
        load_engine: Callable[[], ServingEngine],
        assemble: Callable[["PrefillWorker", ServingEngine], PrefillParts],
    ) -> None:
        self.site = site
        self._directory = directory
        self._transport = transport
        self._load_engine = load_engine
        self._assemble = assemble
        self._parts: PrefillParts | None = None
        self._broken = asyncio.Event()
        self._exit = AsyncExitStack()

    @property
    def parts(self) -> PrefillParts:
        """The running parts; there are some after `start`."""
        assert self._parts is not None, "the worker has not started"
        return self._parts

    async def start(self) -> WorkerRecord:
        """Load the engine, then listen, then register. Raises `OperatorError` and leaves nothing behind then."""
        try:
            return await self._start()
        except BaseException:
            await self.close()
            raise

    async def wait_until_broken(self) -> None:
        """Return when the engine has failed for good, or hangs."""
        await self._broken.wait()

    def break_down(self) -> None:
        """Say that the worker cannot go on."""
        self._broken.set()

    def stop_admission(self) -> None:
        """Take no new prompts; the router sees it in the status."""
        self.parts.scheduler.draining = True

    async def drain(self) -> None:
        """Stop admission and wait until prompts are read and their blocks fetched, at most ``drain_s`` seconds."""
        self.stop_admission()
        parts = self.parts
        await parts.server.set_serving(serving=False)
        deadline = asyncio.get_running_loop().time() + self.site.settings.drain_s
        while asyncio.get_running_loop().time() < deadline:
            if parts.scheduler.idle and parts.pool.counts().held == 0:
                return
            await asyncio.sleep(DRAIN_POLL_S)

    def leave_to_successor(self) -> None:
        """Drain and break down: another life of the worker has its place, and lives."""
        log.critical("another life of %s has its place, and lives: this one drains and ends", self.site.worker_id)
        leaving = asyncio.create_task(self._drain_and_end(), name="leave to successor")
        self._exit.callback(leaving.cancel)

    async def close(self) -> None:
        """End. May be called twice."""
        await self._exit.aclose()

    def load(self) -> WorkerLoad:
        """Return the status that the router watches."""
        parts = self.parts
        return replace(
            parts.scheduler.load(),
            engine_steps=parts.loop.steps,
            orphaned_holds=parts.holds.orphaned,
            expired_leases=parts.exporter.expired,
            links=parts.links.book.reports(),
        )

    async def _start(self) -> WorkerRecord:
        self._exit.push_async_callback(self._directory.close)
        await self._transport.start()
        self._exit.push_async_callback(self._transport.close)
        engine = await asyncio.to_thread(self._load_engine)
        parts = self._parts = self._assemble(self, engine)
        parts.loop.start()
        self._exit.push_async_callback(parts.loop.close)
        self._exit.push_async_callback(parts.importer.close)
        self._exit.push_async_callback(parts.channels.close)
        self._exit.push_async_callback(parts.calls.close)
        self._exit.push_async_callback(parts.borrowed.close)
        self._exit.callback(parts.scheduler.fail_all, WorkerLost(f"{self.site.worker_id} ends"))
        sweeper = asyncio.create_task(self._sweep(), name="lease sweeper")
        sweeper.add_done_callback(self._sweeper_over)
        self._exit.callback(sweeper.cancel)
        address = await parts.server.start(reachable_host(self.site.settings.host), 0)
        self._exit.push_async_callback(parts.server.close)
        self._exit.callback(parts.exporter.close, f"{self.site.worker_id} ends")
        record = WorkerRecord(
            worker_id=self.site.worker_id,
            incarnation=self.site.incarnation,
            role=Role.PREFILL,
            address=address,
            transport=self._transport.name,
            model=engine.identity,
            layout=engine.layout,
            total_blocks=parts.pool.counts().total,
            pid=os.getpid(),
        )
        await refuse_other_layouts(self._directory, record, self.site.directory_settings.lease_s)
        await refuse_a_twin(self._directory, record, speaks, self.site.directory_settings.lease_s)
        publisher = Publisher(
            self._directory, record, parts.pool.drain_events, parts.pool.cached_hashes, self.site.directory_settings
        )
        publisher.on_replaced = self.leave_to_successor
        parts.bell.listen(publisher.wake)
        await publisher.start()
        self._exit.push_async_callback(publisher.close)
        return record

    async def _drain_and_end(self) -> None:
        await self.drain()
        self.break_down()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            await self.parts.exporter.sweep()
            self.parts.holds.sweep()
            self._check_step()

    def _check_step(self) -> None:
        age_s = self.parts.loop.step_age_s
        if age_s > self.site.settings.step_timeout_s and not self._broken.is_set():
            log.critical("an engine step has not ended for %.1f s: this worker ends", age_s)
            self.break_down()

    def _sweeper_over(self, sweeper: asyncio.Task[None]) -> None:
        if not sweeper.cancelled():
            log.critical("the sweeper failed, a mistake of ours: this worker ends", exc_info=sweeper.exception())
            self.break_down()
