"""A second process by a worker's id does not start beside a first one that lives, and does beside one that does not."""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster_core.errors import SettingsError
from cluster_core.identity import new_incarnation
from cluster_core.workers import WorkerRecord
from cluster_rpc.worker_presence import speaks
from decode_worker import wiring as decode_wiring
from decode_worker.worker import DecodeWorker
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from prefill_worker import wiring as prefill_wiring
from prefill_worker.worker import PrefillWorker
from tests.fake_engine import FakeEngine
from tests.worker_pair import TRANSFER, running_pair

PATIENCE_S = 10.0


def twin_of(worker: PrefillWorker | DecodeWorker, lease_s: float) -> Any:
    """Return another process's worker of the same id and directory."""
    wiring: Any = decode_wiring if isinstance(worker, DecodeWorker) else prefill_wiring
    site, transport = worker.site, LoopbackTransport(LoopbackNetwork())
    settings = replace(site.directory_settings, lease_s=lease_s)
    kind: Any = type(worker)
    return kind(
        replace(site, incarnation=new_incarnation(), directory_settings=settings),
        worker._directory,
        transport,
        load_engine=lambda: FakeEngine(site.settings.total_blocks),
        assemble=lambda twin, engine: wiring.assemble(twin, engine, transport, TRANSFER),
    )


async def test_a_worker_whose_id_is_taken_names_the_other_and_leaves_it_alone() -> None:
    async with running_pair() as pair:
        for worker, record in ((pair.decode, pair.decode_record), (pair.prefill, pair.prefill_record)):
            twin = twin_of(worker, lease_s=0.02)
            told = f"pid {record.pid} at {record.address}; start this one by another id"
            with pytest.raises(SettingsError, match=told):
                await twin.start()
            assert await speaks(record)


async def test_a_worker_that_drains_is_replaced_at_once() -> None:
    async with running_pair() as pair:
        pair.decode.stop_admission()
        assert not await speaks(pair.decode_record)
        twin = twin_of(pair.decode, lease_s=5.0)
        record = await asyncio.wait_for(twin.start(), PATIENCE_S)
        assert await speaks(record)
        await twin.close()


async def test_only_the_life_that_is_asked_for_counts() -> None:
    async with running_pair() as pair:
        assert await speaks(pair.decode_record)
        assert not await speaks(replace(pair.decode_record, incarnation=new_incarnation()))


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


async def test_who_is_dead_or_stopped_does_not_speak(port: socket.socket) -> None:
    async with running_pair() as pair:
        stopped = at(pair.decode_record, port)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert not await speaks(stopped, listen_s=0.05), "a kernel accepts for a process that stands still"
    assert loop.time() - began >= 0.04
    port.close()
    assert not await asyncio.wait_for(speaks(stopped, listen_s=10 * PATIENCE_S), PATIENCE_S), "refused at once"


def at(record: WorkerRecord, listening: socket.socket) -> WorkerRecord:
    """Return the registration of a worker at a port where nobody answers."""
    host, number = listening.getsockname()
    return replace(record, address=f"{host}:{number}")
