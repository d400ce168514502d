"""The whole of a prefill worker on one page: which object holds which."""

from functools import partial

from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.identity import WorkerId, new_incarnation
from cluster_core.settings_reader import Document, read_section
from cluster_rpc.channels import ChannelPool
from cluster_rpc.handoff_calls import HandoffCalls
from cluster_rpc.handoff_service import HandoffService
from cluster_rpc.limits import INTERNAL
from cluster_rpc.link_service import LinkService
from cluster_rpc.order_checks import Capacity
from cluster_rpc.server import HANDOFF, LINK, PREFILL, WORKER, RpcServer
from cluster_rpc.worker_service import WorkerStatusService
from inference_engine.bell import Bell
from inference_engine.block_pool import BlockPool
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from inference_engine.engine_loader import ServingEngine, engine_loader
from inference_engine.engine_loop import EngineLoop
from inference_engine.failing_engine import with_failpoints
from inference_engine.served_model import open_served_model
from inference_engine.settings import EngineSettings
from inference_engine.watched_holds import WatchedHolds
from kv_transfer.exporter import Exporter
from kv_transfer.fetcher import Fetcher
from kv_transfer.hold_sweep import HoldSweep
from kv_transfer.importer import Importer
from kv_transfer.link_probe import LinkProbe, ProbeParts
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Transport, make_transport
from prefill_worker.scheduler import PrefillScheduler, SchedulerParts
from prefill_worker.service import PrefillService
from prefill_worker.settings import PrefillSettings
from prefill_worker.worker import PrefillParts, PrefillWorker, Site


def build_worker(document: Document, worker_id: WorkerId, directory_url: str) -> PrefillWorker:
    """Read the settings and check the model; `PrefillWorker.start` does the rest. Raises `OperatorError`."""
    engine_settings = read_section(document, "engine", EngineSettings)
    transfer = read_section(document, "transfer", TransferSettings)
    site = Site(
        worker_id=worker_id,
        incarnation=new_incarnation(),
        settings=read_section(document, "prefill", PrefillSettings),
        directory_settings=read_section(document, "directory", DirectorySettings),
    )
    load_engine = engine_loader(open_served_model(document), engine_settings, site.settings.total_blocks)
    transport = make_transport(transfer, device=engine_settings.device)
    return PrefillWorker(
        site,
        RedisDirectory(directory_url, site.directory_settings),
        transport,
        load_engine=load_engine,
        assemble=lambda worker, engine: assemble(worker, engine, transport, transfer),
    )


def assemble(
    worker: PrefillWorker, engine: ServingEngine, transport: Transport, transfer: TransferSettings
) -> PrefillParts:
    """Connect the parts around a loaded engine."""
    site = worker.site
    bell = Bell()
    pool = BlockPool(site.settings.total_blocks)
    exporter = Exporter(
        transport=transport,
        memory=engine.memory,
        holds=WatchedHolds(pool, bell.ring),
        incarnation=site.incarnation,
        layout=engine.layout,
        settings=transfer,
        find_run=pool.find_run,
        on_claim=bell.ring,
    )
    importer = Importer(
        transport=transport,
        memory=engine.memory,
        holds=WatchedHolds(pool, bell.ring),
        worker_id=site.worker_id,
        incarnation=site.incarnation,
        layout=engine.layout,
        settings=transfer,
    )
    channels = ChannelPool()
    calls = HandoffCalls(channels)
    fetcher = Fetcher(
        importer,
        lambda source, job: calls.converse(source.address, source.worker_id, partial(importer.run, job)),
    )
    borrowed = BorrowedPrefixes(fetcher.fetch)
    links = LinkProbe(
        ProbeParts(
            transport=transport,
            memory=engine.memory,
            worker_id=site.worker_id,
            incarnation=site.incarnation,
            settings=transfer,
            book=importer.links,
        )
    )
    capacity = Capacity(
        model=engine.identity,
        layout=engine.layout,
        total_blocks=site.settings.total_blocks,
        max_waiting=site.settings.max_waiting,
    )
    parts = SchedulerParts(pool=pool, capacity=capacity, exports=exporter, settings=site.settings, borrowed=borrowed)
    scheduler = PrefillScheduler(parts, on_change=bell.ring)
    holds = HoldSweep(
        worker_id=site.worker_id,
        pool=WatchedHolds(pool, bell.ring),
        exporter=exporter,
        importer=importer,
        requests=lambda: scheduler.known_holds() | borrowed.known_holds(),
    )
    loop = EngineLoop(engine=with_failpoints(engine, "p.chunk"), work=scheduler, on_broken=worker.break_down)
    bell.listen(loop.wake)
    status = WorkerStatusService(site.worker_id, site.incarnation, load=worker.load, drain=worker.stop_admission)
    server = RpcServer(INTERNAL)
    server.add(PREFILL, PrefillService(scheduler, engine.grammars))
    server.add(HANDOFF, HandoffService(exporter))
    server.add(WORKER, status)
    server.add(LINK, LinkService(links, channels))
    return PrefillParts(
        bell=bell,
        pool=pool,
        exporter=exporter,
        importer=importer,
        borrowed=borrowed,
        holds=holds,
        calls=calls,
        links=links,
        channels=channels,
        scheduler=scheduler,
        loop=loop,
        server=server,
    )
