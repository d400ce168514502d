"""A prefill and a decode worker in this process: fake engines, real gRPC, loopback transport, a directory in memory."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from block_directory.memory_directory import MemoryDirectory
from block_directory.settings import DirectorySettings
from cluster_core.hash_chain import root_hash
from cluster_core.identity import WorkerId, new_incarnation
from cluster_core.workers import WorkerRecord
from cluster_rpc.worker_messages import PrefillOrigin
from decode_worker import wiring as decode_wiring
from decode_worker.settings import DecodeSettings
from decode_worker.worker import DecodeWorker
from decode_worker.worker import Site as DecodeSite
from inference_engine.block_pool import BlockPool
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.settings import TransferSettings
from prefill_worker import wiring as prefill_wiring
from prefill_worker.settings import PrefillSettings
from prefill_worker.worker import PrefillWorker
from prefill_worker.worker import Site as PrefillSite
from tests.eventually import eventually
from tests.fake_engine import FakeEngine
from tests.pair_client import PairClient

PREFILL = PrefillSettings(total_blocks=64, token_budget=24, chunk_tokens=8, max_running=8, drain_s=5.0)
DECODE = DecodeSettings(
    total_blocks=64, token_budget=24, chunk_tokens=8, max_running=16, drain_s=5.0, import_patience_s=0.2, passing_s=0.2
)
TRANSFER = TransferSettings(transport="loopback", lease_s=2.0, grace_s=0.1, open_timeout_s=2.0, settle_timeout_s=0.1)


class WorkerPair:
    """The two workers, and a client that calls them as the router does."""

    def __init__(self, prefill: PrefillWorker, decode: DecodeWorker, engines: tuple[FakeEngine, FakeEngine]) -> None:
        self.prefill = prefill
        self.decode = decode
        self.prefill_engine, self.decode_engine = engines
        self.prefill_record: WorkerRecord
        self.decode_record: WorkerRecord
        self.client: PairClient

    async def until_free(self, within_s: float = 5.0) -> None:
        """Wait until nothing is held on either side; fail after ``within_s`` seconds."""
        await eventually(lambda: not any(pool.counts().held for pool in self.pools()), within_s)
        for pool in self.pools():
            pool.audit()

    def pools(self) -> tuple[BlockPool, BlockPool]:
        return self.prefill.parts.pool, self.decode.parts.pool


@asynccontextmanager
async def running_pair(
    prefill: PrefillSettings = PREFILL,
    decode: DecodeSettings = DECODE,
    transfer: TransferSettings = TRANSFER,
    engines: tuple[Any, Any] | None = None,
) -> AsyncIterator[WorkerPair]:
    """Run both workers until the block ends; ``engines`` of the prefill and the decode worker, or fake ones."""
    network = LoopbackNetwork()
    transports = LoopbackTransport(network), LoopbackTransport(network)
    directory_settings = DirectorySettings()
    directory = MemoryDirectory(directory_settings)
    engines = engines or (FakeEngine(prefill.total_blocks), FakeEngine(decode.total_blocks))
    prefill_worker = PrefillWorker(
        PrefillSite(
            worker_id=WorkerId("prefill-0"),
            incarnation=new_incarnation(),
            settings=prefill,
            directory_settings=directory_settings,
        ),
        directory,
        transports[0],
        load_engine=lambda: engines[0],
        assemble=lambda worker, engine: prefill_wiring.assemble(worker, engine, transports[0], transfer),
    )
    decode_worker = DecodeWorker(
        DecodeSite(
            worker_id=WorkerId("decode-0"),
            incarnation=new_incarnation(),
            settings=decode,
            directory_settings=directory_settings,
        ),
        directory,
        transports[1],
        load_engine=lambda: engines[1],
        assemble=lambda worker, engine: decode_wiring.assemble(worker, engine, transports[1], transfer),
    )
    pair = WorkerPair(prefill_worker, decode_worker, engines)
    async with AsyncExitStack() as exits:
        exits.push_async_callback(prefill_worker.close)
        pair.prefill_record = await prefill_worker.start()
        exits.push_async_callback(decode_worker.close)
        pair.decode_record = await decode_worker.start()
        to_prefill = await exits.enter_async_context(grpc.aio.insecure_channel(pair.prefill_record.address))
        to_decode = await exits.enter_async_context(grpc.aio.insecure_channel(pair.decode_record.address))
        record = pair.prefill_record
        origin = PrefillOrigin(worker_id=record.worker_id, incarnation=record.incarnation, address=record.address)
        pair.client = PairClient(to_prefill, to_decode, origin)
        pair.client.root = root_hash(record.model.root_hash_seed(record.layout), "")
        yield pair
