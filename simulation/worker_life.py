"""One life of a simulated worker: the real scheduler, services, sessions and publisher over a hash engine.

What `prefill_worker.wiring`, `decode_worker.wiring` and the workers' own life cycles put together is put together here
without sockets, threads and processes.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from block_directory.publisher import Publisher
from block_directory.settings import DirectorySettings
from cluster_core.errors import WorkerLost
from cluster_core.handoff import FetchJob, FetchReport, FetchSource
from cluster_core.identity import Incarnation, RequestId, Role, WorkerId
from cluster_core.layout import KvLayout
from cluster_core.workers import WorkerLoad, WorkerRecord
from cluster_rpc.channels import ChannelPool
from cluster_rpc.handoff_service import HandoffService
from cluster_rpc.order_checks import Capacity
from cluster_rpc.server import DECODE, HANDOFF, PREFILL, WORKER
from cluster_rpc.worker_service import WorkerStatusService
from decode_worker.handoff_call import GrpcBlockSource
from decode_worker.scheduler import DecodeScheduler
from decode_worker.scheduler import SchedulerParts as DecodeSchedulerParts
from decode_worker.service import DecodeService
from decode_worker.settings import DecodeSettings
from inference_engine.bell import Bell
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from inference_engine.engine_loop import EngineLoop
from inference_engine.watched_holds import WatchedHolds
from kv_transfer.exporter import Exporter
from kv_transfer.fetcher import Fetcher
from kv_transfer.hold_sweep import HoldSweep
from kv_transfer.import_job import Imported, ImportJob
from kv_transfer.importer import Importer
from kv_transfer.settings import TransferSettings
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.scheduler import SchedulerParts as PrefillSchedulerParts
from prefill_worker.service import PrefillService
from prefill_worker.settings import PrefillSettings
from simulation.block_moves import BlockFaults, SimulatedTransport
from simulation.calls import Channel
from simulation.directory_server import DirectoryClient, DirectoryServer
from simulation.hash_engine import MODEL, BlockBytes, HashEngine, NoGrammars, StepThread
from simulation.network import Network
from simulation.scenario import WorkerPlan
from simulation.servers import Server
from simulation.virtual_loop import Host
from simulation.watched_pool import WatchedPool

STEP_S = 0.006
SWEEP_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all lives of all workers share."""

    network: Network
    directory: DirectoryServer
    block_faults: BlockFaults
    layout: KvLayout
    prefill: PrefillSettings
    decode: DecodeSettings
    transfer: TransferSettings
    directory_settings: DirectorySettings
    tenants: dict[RequestId, str]
    randomness: random.Random
    fetched: list[int]
    """The number of blocks that workers have fetched from the caches of others."""


class WorkerLife:
    """From `start` to a crash, or to `close`. Everything in it belongs to `host`."""

    def __init__(
        self,
        plan: WorkerPlan,
        around: Surroundings,
        host: Host,
        incarnation: Incarnation,
        address: str,
        on_broken: Callable[["WorkerLife"], None],
    ) -> None:
        self.plan = plan
        self.host = host
        self.incarnation = incarnation
        self.address = address
        self.slowness = 1.0
        self.memory = BlockBytes(plan.total_blocks)
        self.pool = WatchedPool(plan.total_blocks, self.memory, around.tenants)
        self.engine = HashEngine(self.memory, around.layout.window_tokens)
        self.transport = SimulatedTransport(
            around.network,
            host,
            f"kv:{plan.name}:{incarnation}".encode(),
            around.block_faults,
            self.pool.has_writer,
        )
        self.exporter: Exporter
        self.importer: Importer
        self.source: GrpcBlockSource
        self.borrowed: BorrowedPrefixes
        self.scheduler: PrefillScheduler | DecodeScheduler
        self.holds: HoldSweep
        self.loop: EngineLoop
        self.publisher: Publisher
        self._around = around
        self._on_broken = on_broken
        self._random = around.randomness
        self._bell = Bell()
        self._server = Server(around.network, host, address)
        self._channels = ChannelPool(open_at=lambda to, _: Channel(around.network, host, to))  # type: ignore[arg-type, return-value]  # what its users know of one

    def start(self) -> None:
        """Put everything together and register. Called on the host."""
        around, plan = self._around, self.plan
        clock = around.network.loop.time
        capacity = Capacity(model=MODEL, layout=around.layout, total_blocks=plan.total_blocks, max_waiting=256)
        self._assemble_transfers(clock)
        if plan.role is Role.PREFILL:
            self._assemble_prefill(capacity, clock)
        else:
            self._assemble_decode(capacity, clock)
        self.holds = HoldSweep(
            worker_id=WorkerId(plan.name),
            pool=WatchedHolds(self.pool, self._bell.ring),
            exporter=self.exporter,
            importer=self.importer,
            requests=lambda: self.scheduler.known_holds() | self.borrowed.known_holds(),
        )
        self.loop = EngineLoop(
            engine=self.engine,
            work=self.scheduler,
            on_broken=lambda: self._on_broken(self),
            thread=StepThread(self._step_s),
            clock=clock,
        )
        self._bell.listen(self.loop.wake)
        self._server.add(
            WORKER,
            WorkerStatusService(WorkerId(plan.name), self.incarnation, load=self.load, drain=self._drain),
        )
        self.transport.listen()
        self.loop.start()
        asyncio.create_task(self._sweep(), name="sweeper")  # noqa: RUF006  # the host keeps its tasks
        self._server.start()
        record = WorkerRecord(
            worker_id=WorkerId(plan.name),
            incarnation=self.incarnation,
            role=plan.role,
            address=self.address,
            transport=self.transport.name,
            model=MODEL,
            layout=around.layout,
            total_blocks=plan.total_blocks,
            pid=1,
        )
        self.publisher = Publisher(
            DirectoryClient(around.directory, self.host),
            record,
            self.pool.drain_events,
            self.pool.cached_hashes,
            around.directory_settings,
            randomness=self._random,
        )
        self._bell.listen(self._wake_publisher)
        asyncio.create_task(self.publisher.start(), name="start")  # noqa: RUF006  # as above

    async def close(self) -> None:
        """End in order, as a worker that is told to."""
        await self.publisher.close()
        self.exporter.close(f"{self.plan.name} ends")
        self._server.stop()
        if isinstance(self.scheduler, DecodeScheduler):
            await self.scheduler.close(WorkerLost(f"{self.plan.name} ends"))
        else:
            self.scheduler.fail_all(WorkerLost(f"{self.plan.name} ends"))
        await self.borrowed.close()
        await self.source.close()
        await self._channels.close()
        await self.importer.close()
        await self.loop.close()
        await self.transport.close()

    def load(self) -> WorkerLoad:
        """Return the status that the router watches."""
        links = self.importer.links.reports()
        return replace(
            self.scheduler.load(), engine_steps=self.loop.steps, orphaned_holds=self.holds.orphaned, links=links
        )

    def _assemble_transfers(self, clock: Callable[[], float]) -> None:
        """Make what every worker has: it may lend blocks of its cache, and fetch those of others."""
        around = self._around
        self.exporter = Exporter(
            transport=self.transport,
            memory=self.memory,
            holds=WatchedHolds(self.pool, self._bell.ring),
            incarnation=self.incarnation,
            layout=around.layout,
            settings=around.transfer,
            find_run=self.pool.find_run,
            on_claim=self._bell.ring,
            clock=clock,
        )
        self.importer = Importer(
            transport=self.transport,
            memory=self.memory,
            holds=WatchedHolds(self.pool, self._bell.ring),
            worker_id=WorkerId(self.plan.name),
            incarnation=self.incarnation,
            layout=around.layout,
            settings=around.transfer,
            clock=clock,
        )
        self.source = GrpcBlockSource(self.importer, self._channels)
        self._fetcher = Fetcher(self.importer, self._bring)
        self.borrowed = BorrowedPrefixes(self._fetch)
        self._server.add(HANDOFF, HandoffService(self.exporter))

    async def _bring(self, lender: FetchSource, job: ImportJob) -> Imported:
        return await self.source.calls.converse(lender.address, lender.worker_id, partial(self.importer.run, job))

    async def _fetch(self, job: FetchJob) -> FetchReport:
        report = await self._fetcher.fetch(job)
        network = self._around.network
        told = (self.plan.name, report.lender, f"{report.moved_blocks}/{report.asked_blocks}", report.failure)
        network.history.note(network.loop.now, "fetched", *told)
        self._around.fetched[0] += report.moved_blocks
        return report

    def _assemble_prefill(self, capacity: Capacity, clock: Callable[[], float]) -> None:
        parts = PrefillSchedulerParts(
            pool=self.pool,
            capacity=capacity,
            exports=self.exporter,
            settings=self._around.prefill,
            borrowed=self.borrowed,
            clock=clock,
        )
        self.scheduler = PrefillScheduler(parts, on_change=self._bell.ring)
        self._server.add(PREFILL, PrefillService(self.scheduler, NoGrammars()))

    def _assemble_decode(self, capacity: Capacity, clock: Callable[[], float]) -> None:
        parts = DecodeSchedulerParts(
            pool=self.pool,
            capacity=capacity,
            source=self.source,
            settings=self._around.decode,
            borrowed=self.borrowed,
            copy_block=self.memory.copy_block,
            clock=clock,
        )
        self.scheduler = DecodeScheduler(parts, on_change=self._bell.ring)
        self._server.add(DECODE, DecodeService(self.scheduler, NoGrammars()))

    def _step_s(self) -> float:
        self.engine.step_s = STEP_S * self.slowness * self._random.uniform(0.5, 1.5)
        return self.engine.step_s

    def _wake_publisher(self) -> None:
        """Wake it where there is something to publish: the bell rings many times for each time that there is."""
        if self.pool.has_news:
            self.publisher.wake()

    def _drain(self) -> None:
        self.scheduler.draining = True

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            await self.exporter.sweep()
            self.holds.sweep()
            if isinstance(self.scheduler, DecodeScheduler):
                self.scheduler.sweep()
