"""The whole of a decode worker on one page: which object holds which."""

from collections.abc import Callable
from functools import partial

from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.identity import WorkerId, new_incarnation
from cluster_core.settings_reader import Document, read_section
from cluster_rpc.channels import ChannelPool
from cluster_rpc.handoff_service import HandoffService
from cluster_rpc.limits import INTERNAL
from cluster_rpc.link_service import LinkService
from cluster_rpc.order_checks import Capacity
from cluster_rpc.server import DECODE, HANDOFF, LINK, WORKER, RpcServer
from cluster_rpc.worker_service import WorkerStatusService
from decode_worker.draft_guesses import DraftGuesses
from decode_worker.guess_source import GuessSource, LookupGuesses
from decode_worker.handoff_call import GrpcBlockSource
from decode_worker.scheduler import DecodeScheduler, SchedulerParts
from decode_worker.service import DecodeService
from decode_worker.settings import DecodeSettings, SpeculationSettings
from decode_worker.speculation import Speculation
from decode_worker.worker import DecodeParts, DecodeWorker, Site
from inference_engine.bell import Bell
from inference_engine.block_pool import BlockPool
from inference_engine.borrowed_prefixes import BorrowedPrefixes
from inference_engine.draft_model import DraftingEngine
from inference_engine.engine_loader import LoadedEngine, ServingEngine, engine_loader, with_draft
from inference_engine.engine_loop import EngineLoop
from inference_engine.failing_engine import with_failpoints
from inference_engine.served_model import open_draft_model, open_served_model
from inference_engine.settings import EngineSettings
from inference_engine.watched_holds import WatchedHolds
from kv_transfer.exporter import Exporter
from kv_transfer.fetcher import Fetcher
from kv_transfer.hold_sweep import HoldSweep
from kv_transfer.importer import Importer
from kv_transfer.link_probe import LinkProbe, ProbeParts
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Transport, make_transport


def build_worker(document: Document, worker_id: WorkerId, directory_url: str) -> DecodeWorker:
    """Read the settings and check the model; `DecodeWorker.start` does the rest. Raises `OperatorError`."""
    engine_settings = read_section(document, "engine", EngineSettings)
    transfer = read_section(document, "transfer", TransferSettings)
    site = Site(
        worker_id=worker_id,
        incarnation=new_incarnation(),
        settings=read_section(document, "decode", DecodeSettings),
        directory_settings=read_section(document, "directory", DirectorySettings),
        speculation=read_section(document, "speculation", SpeculationSettings),
    )
    model = open_served_model(document)
    load_model = engine_loader(model, engine_settings, site.settings.total_blocks)
    draft_path = site.speculation.draft_model
    load_draft = (
        engine_loader(open_draft_model(document, model, draft_path), engine_settings, _draft_blocks(site))
        if draft_path
        else None
    )
    transport = make_transport(transfer, device=engine_settings.device)
    return DecodeWorker(
        site,
        RedisDirectory(directory_url, site.directory_settings),
        transport,
        load_engine=lambda: _load(load_model, load_draft, site.settings.max_running),
        assemble=lambda worker, engine: assemble(worker, engine, transport, transfer),
    )


def assemble(
    worker: DecodeWorker, engine: ServingEngine, transport: Transport, transfer: TransferSettings
) -> DecodeParts:
    """Connect the parts around a loaded engine."""
    site = worker.site
    bell = Bell()
    pool = BlockPool(site.settings.total_blocks)
    importer = Importer(
        transport=transport,
        memory=engine.memory,
        holds=WatchedHolds(pool, bell.ring),
        worker_id=site.worker_id,
        incarnation=site.incarnation,
        layout=engine.layout,
        settings=transfer,
    )
    exporter = Exporter(
        transport=transport,
        memory=engine.memory,
        holds=WatchedHolds(pool, bell.ring),
        incarnation=site.incarnation,
        layout=engine.layout,
        settings=transfer,
        find_run=pool.find_run,
    )
    channels = ChannelPool()
    source = GrpcBlockSource(importer, channels)
    fetcher = Fetcher(
        importer,
        lambda lender, job: source.calls.converse(lender.address, lender.worker_id, partial(importer.run, job)),
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
    parts = SchedulerParts(
        pool=pool,
        capacity=capacity,
        source=source,
        settings=site.settings,
        borrowed=borrowed,
        copy_block=engine.memory.copy_block,
        speculation=Speculation(_guess_source(site, engine), most=site.speculation.max_draft_tokens),
    )
    scheduler = DecodeScheduler(parts, on_change=bell.ring)
    holds = HoldSweep(
        worker_id=site.worker_id,
        pool=WatchedHolds(pool, bell.ring),
        exporter=exporter,
        importer=importer,
        requests=lambda: scheduler.known_holds() | borrowed.known_holds(),
    )
    loop = EngineLoop(engine=with_failpoints(engine, "d.step"), work=scheduler, on_broken=worker.break_down)
    bell.listen(loop.wake)
    status = WorkerStatusService(site.worker_id, site.incarnation, load=worker.load, drain=worker.stop_admission)
    server = RpcServer(INTERNAL)
    server.add(DECODE, DecodeService(scheduler, engine.grammars))
    server.add(HANDOFF, HandoffService(exporter))
    server.add(WORKER, status)
    server.add(LINK, LinkService(links, channels))
    return DecodeParts(
        bell=bell,
        pool=pool,
        importer=importer,
        exporter=exporter,
        borrowed=borrowed,
        holds=holds,
        source=source,
        links=links,
        channels=channels,
        scheduler=scheduler,
        loop=loop,
        server=server,
    )


def _load(
    load_model: Callable[[], LoadedEngine], load_draft: Callable[[], LoadedEngine] | None, max_running: int
) -> ServingEngine:
    """Load the model, and its draft model where there is one."""
    engine = load_model()
    engine.prepare_decode(max_running)
    if load_draft is None:
        return engine
    draft = load_draft()
    draft.prepare_decode(max_running)
    return with_draft(engine, draft)


def _guess_source(site: Site, engine: ServingEngine) -> GuessSource | None:
    match site.speculation.method:
        case "prompt_lookup":
            return LookupGuesses()
        case "draft_model":
            assert isinstance(engine, DraftingEngine), "loaded without its draft model"
            return DraftGuesses(
                identity=engine.draft.identity,
                layout=engine.draft.layout,
                total_blocks=_draft_blocks(site),
                chunk_tokens=site.settings.chunk_tokens,
            )
        case _:
            return None


def _draft_blocks(site: Site) -> int:
    return site.speculation.draft_total_blocks or site.settings.total_blocks
