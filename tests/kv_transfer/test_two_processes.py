"""A hand-over between two processes over UCX, and what is left when one of them is killed."""

import asyncio
import pickle
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import numpy as np
import pytest

from cluster_core.errors import WorkerLost
from cluster_core.handoff import ExporterMessage, ImporterMessage
from cluster_core.holds import Hold, WriterHold
from kv_transfer.importer import Importer
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import make_transport
from tests.kv_transfer.exporter_process import SEED
from tests.kv_transfer.fake_pool import FakePool, sealed_blocks
from tests.kv_transfer.handover import job_of, make_importer

TIMEOUT_S = 30.0
SETTINGS = TransferSettings(ucx_keepalive_s=0.2)


class PipeChannel:
    """The stream to an exporter process."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    async def send(self, message: ImporterMessage) -> None:
        data = pickle.dumps(message)
        self._in.write(struct.pack("<I", len(data)) + data)

    async def receive(self) -> ExporterMessage:
        try:
            (size,) = struct.unpack("<I", await self._out.readexactly(4))
            message: ExporterMessage = pickle.loads(await self._out.readexactly(size))  # noqa: S301  # our own child
        except asyncio.IncompleteReadError as error:
            reason = "the exporter's process ended"
            raise WorkerLost(reason) from error
        return message


async def _start_exporter(tokens: int, blocks: int = -1) -> Process:
    module = "tests.kv_transfer.exporter_process"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, str(tokens), str(blocks), stdin=PIPE, stdout=PIPE
    )


@pytest.fixture
async def importer() -> AsyncIterator[Importer]:
    transport = make_transport(SETTINGS)
    await transport.start()
    one = make_importer(transport, FakePool(200), SETTINGS)
    yield one
    await one.close()
    await transport.close()


async def test_a_long_prompt_arrives_whole(importer: Importer) -> None:
    process = await _start_exporter(2500)
    async with asyncio.timeout(TIMEOUT_S):
        imported = await importer.run(job_of(2500), PipeChannel(process))
        assert await process.wait() == 0
    assert imported.first_token_id == 42
    assert imported.report.moved_blocks == 157
    memory, origin = importer.memory, FakePool(200, seed=SEED)
    for block in sealed_blocks(2499):
        if block.hash is not None:
            assert np.array_equal(memory.buffer(block.position), origin.bytes[block.index])


class DeadlyPool(FakePool):
    """Kills a process when the first block has landed in it."""

    victim: Process | None = None

    def release_block(self, index: int, hold: Hold) -> None:
        super().release_block(index, hold)
        if self.victim is not None:
            self.victim.kill()
            self.victim = None


async def test_of_an_exporter_that_dies_between_two_lots_only_whole_blocks_are_trusted() -> None:
    transport, pool = make_transport(SETTINGS), DeadlyPool(200)
    await transport.start()
    importer, job = make_importer(transport, pool, SETTINGS), job_of(2500)
    pool.victim = process = await _start_exporter(2500)
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(WorkerLost):
            await importer.run(job, PipeChannel(process))
        await process.wait()
        while pool.count(WriterHold):  # noqa: ASYNC110  # the pool has no event for it
            await asyncio.sleep(0)
    origin, verified = FakePool(200, seed=SEED), job.remains.verified
    assert len(verified) < len(job.targets)
    assert all(np.array_equal(pool.buffer(position), origin.bytes[position]) for position in verified)
    await importer.close()
    await transport.close()


async def test_the_exporters_death_fails_the_handover_and_frees_the_targets(importer: Importer) -> None:
    process, pool = await _start_exporter(2500, blocks=100), importer.memory
    assert isinstance(pool, FakePool)
    running = asyncio.create_task(importer.run(job_of(2500), PipeChannel(process)))
    async with asyncio.timeout(TIMEOUT_S):
        while not pool.count(WriterHold):  # noqa: ASYNC110  # the pool has no event for it
            await asyncio.sleep(0)
        process.kill()
        with pytest.raises(WorkerLost):
            await running
        await process.wait()
        while pool.count(WriterHold):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0)
    assert importer.quarantined == 0
    after = await _start_exporter(300)
    async with asyncio.timeout(TIMEOUT_S):
        assert (await importer.run(job_of(300), PipeChannel(after))).first_token_id == 42
        await after.wait()
