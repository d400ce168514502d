"""Blocks in the memory of a GPU, and the same steps over host memory where there is none.

Two processes on one GPU are in `tests/benchmarks/test_kv_cuda.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster_core.holds import RequestHold
from cluster_core.identity import Incarnation, WorkerId
from inference_engine.block_pool import BlockPool
from inference_engine.kv_pool import KvPool
from kv_transfer.digest import BlockDigests, block_digest
from kv_transfer.exporter import Exporter
from kv_transfer.importer import Importer
from kv_transfer.link_book import LinkBook
from kv_transfer.link_probe import LinkProbe, ProbeParts
from kv_transfer.lots import Lot
from kv_transfer.near_or_far import NearOrFarTransport
from kv_transfer.near_transport import NearPeer
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Transport, make_transport
from tests.kv_transfer.fake_pool import ATTEMPT, LAYOUT, REQUEST, hashes_of, sealed_blocks
from tests.kv_transfer.handover import EXPORTER_LIFE, Channel, job_of
from tests.kv_transfer.probes import DirectConversation

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")

SETTINGS = TransferSettings(gpu_copies=True)
LANES = {"cpu": "cma", "cuda": "cuda ipc"}
BLOCKS = 1024
"""Of 8 KiB: a pool that bursts can be sent from."""
TOKENS = 300
TIMEOUT_S = 30.0
LONG_CYCLES = 2_000_000_000
"""A second or so: a step that is being computed."""


def new_pool(device: str, seed: int) -> KvPool:
    pool = KvPool(LAYOUT, BLOCKS, torch.device(device))
    pool.storage.copy_(torch.randn(pool.storage.shape, generator=torch.Generator().manual_seed(seed)))
    return pool


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def ends(device: str) -> AsyncIterator[list[Transport]]:
    transports = [make_transport(SETTINGS, device=device) for _ in range(2)]
    for transport in transports:
        await transport.start()
    yield transports
    for transport in transports:
        await transport.close()


def test_digests_are_those_of_single_blocks(device: str) -> None:
    pool = new_pool(device, 1)
    indices, names = [7, 0, 1023, 7], [*hashes_of(48), None]
    expected = [block_digest(pool.buffer(index), place, names[place]) for place, index in enumerate(indices)]
    assert BlockDigests(pool).of(indices, range(4), names) == expected


@NO_GPU
def test_digests_and_clearing_do_not_wait_for_the_step_that_is_computed() -> None:
    pool = new_pool("cuda", 2)
    digests = BlockDigests(pool)
    before = digests.of([3], [0], [None])
    torch.cuda._sleep(LONG_CYCLES)  # type: ignore[no-untyped-call]  # torch's own
    idle: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]  # as above
    idle.record()
    pool.clear_unused(3, 5)
    after = digests.of([3], [0], [None])
    assert not idle.query()
    torch.cuda.synchronize()
    assert after != before
    assert after == [block_digest(pool.buffer(3), 0, None)]
    assert pool.storage[3, :, :, :, 5:].eq(0).all()
    assert pool.storage[3, :, :, :, :5].ne(0).any()


@pytest.mark.parametrize("indices", [list(range(300)), [5, 3, 39, 0, 17, 8]])
async def test_lots_go_by_the_memory_that_both_have(device: str, ends: list[Transport], indices: list[int]) -> None:
    source, target = new_pool(device, 1), new_pool(device, 2)
    here, there = ends
    coming, going = await here.connect(there.address), await there.connect(here.address)
    assert isinstance(coming, NearPeer)
    assert isinstance(here, NearOrFarTransport)
    assert here.lanes(there.address) == ({"cpu": "cma", "cuda": "cuda_ipc"}[device],)
    heard: list[int] = []
    places, targets = range(len(indices)), [999 - index for index in indices]
    received = coming.receive_lot(Lot(rows=target.rows, indices=targets, tag=100, numbers=places), heard.extend)
    async with asyncio.timeout(TIMEOUT_S):
        await going.send_lot(Lot(rows=source.rows, indices=indices, tag=100, numbers=places))
        await received
    assert sorted(heard) == list(places)
    for index in indices:
        assert torch.equal(target.storage[999 - index], source.storage[index])


async def test_a_whole_handover(device: str, ends: list[Transport]) -> None:
    pools, holds = [new_pool(device, 1), new_pool(device, 2)], [BlockPool(BLOCKS), BlockPool(BLOCKS)]
    exporter = Exporter(
        transport=ends[0], memory=pools[0], holds=holds[0], incarnation=EXPORTER_LIFE, layout=LAYOUT, settings=SETTINGS
    )
    importer = Importer(
        transport=ends[1],
        memory=pools[1],
        holds=holds[1],
        worker_id=WorkerId("decode-0"),
        incarnation=Incarnation(22),
        layout=LAYOUT,
        settings=SETTINGS,
    )
    blocks, hold = sealed_blocks(TOKENS), RequestHold(REQUEST, ATTEMPT)
    sources, targets = (list(pool.allocate(len(blocks), hold)) for pool in holds)
    export = exporter.open(REQUEST, ATTEMPT)
    export.seal([replace(block, index=index) for block, index in zip(blocks, sources, strict=True)])
    export.finish(77)
    channel = Channel()
    serving = asyncio.create_task(channel.serve(exporter))
    async with asyncio.timeout(TIMEOUT_S):
        imported = await importer.run(replace(job_of(TOKENS), targets=tuple(targets)), channel)
        await serving
    assert (imported.first_token_id, imported.report.moved_blocks) == (77, len(blocks))
    assert torch.equal(pools[0].storage[sources], pools[1].storage[targets])
    await importer.close()


async def test_a_link_within_a_machine_is_as_expected_and_its_blocks_are_not_touched(
    device: str, ends: list[Transport]
) -> None:
    probes, pools = [], [new_pool(device, 1), new_pool(device, 2)]
    for name, transport, pool in zip(("decode-0", "prefill-0"), ends, pools, strict=True):
        parts = ProbeParts(
            transport=transport,
            memory=pool,
            worker_id=WorkerId(name),
            incarnation=Incarnation(7),
            settings=SETTINGS,
            book=LinkBook(pool.block_bytes, SETTINGS),
        )
        probes.append(LinkProbe(parts))
    kept = [pool.storage.clone() for pool in pools]
    conversation = DirectConversation(probes[1])
    report = await probes[0].measure(WorkerId("prefill-0"), Incarnation(7), conversation)
    await conversation.close()
    assert report.lane == LANES[device]
    assert all(torch.equal(pool.storage, storage) for pool, storage in zip(pools, kept, strict=True))
