"""The directory's server and the way to it: calls take time, and are lost before or after they were carried out."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from block_directory.directory import Cursor, LogPage, Snapshot
from block_directory.memory_directory import MemoryDirectory
from block_directory.settings import DirectorySettings
from cluster_core.blocks import BlockEvent
from cluster_core.errors import PartUnavailable
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from cluster_core.workers import WorkerRecord
from simulation.network import Network
from simulation.virtual_loop import Host

Result = TypeVar("Result")


class DirectoryServer:
    """One server for all. ``away``: it does not answer. ``losses``: the part of all calls whose answer is lost."""

    def __init__(self, network: Network, settings: DirectorySettings, randomness: random.Random) -> None:
        loop = network.loop
        self.host = Host("directory")
        self.memory = MemoryDirectory(settings, clock=lambda: loop.now)
        self.network = network
        self.call_timeout_s = settings.call_timeout_s
        self.away = False
        self.losses = 0.0
        self.random = randomness.random

    def wipe(self) -> None:
        """Restart empty."""
        self.memory.lose_everything()


class DirectoryClient:
    """One host's `block_directory.directory.BlockDirectory` over that server."""

    def __init__(self, server: DirectoryServer, host: Host) -> None:
        self._server = server
        self._memory = server.memory
        self._host = host

    async def register(self, record: WorkerRecord, lease_s: float, *, replace: bool = True) -> bool:
        """See `WorkerRegistry.register`."""
        return await self._ask(partial(self._memory.register, record, lease_s, replace=replace))

    async def renew(self, worker_id: WorkerId, incarnation: Incarnation, lease_s: float) -> bool:
        """See `WorkerRegistry.renew`."""
        return await self._ask(partial(self._memory.renew, worker_id, incarnation, lease_s))

    async def unregister(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """See `WorkerRegistry.unregister`."""
        await self._ask(partial(self._memory.unregister, worker_id, incarnation))

    async def workers(self) -> list[WorkerRecord]:
        """See `WorkerRegistry.workers`."""
        return await self._ask(self._memory.workers)

    async def epoch(self) -> str:
        """See `WorkerRegistry.epoch`."""
        return await self._ask(self._memory.epoch)

    async def publish(
        self, worker_id: WorkerId, incarnation: Incarnation, first_sequence: int, events: Sequence[BlockEvent]
    ) -> bool:
        """See `BlockLog.publish`."""
        return await self._ask(partial(self._memory.publish, worker_id, incarnation, first_sequence, events))

    async def store_snapshot(
        self, worker_id: WorkerId, incarnation: Incarnation, sequence: int, hashes: Sequence[BlockHash]
    ) -> None:
        """See `BlockLog.store_snapshot`."""
        await self._ask(partial(self._memory.store_snapshot, worker_id, incarnation, sequence, hashes))

    async def snapshot(self, worker_id: WorkerId, incarnation: Incarnation) -> Snapshot | None:
        """See `BlockLog.snapshot`."""
        return await self._ask(partial(self._memory.snapshot, worker_id, incarnation))

    async def sequences(self, lives: Sequence[tuple[WorkerId, Incarnation]]) -> list[int]:
        """See `BlockLog.sequences`."""
        return await self._ask(partial(self._memory.sequences, lives))

    async def tail(self, cursor: Cursor | None, wait_s: float) -> LogPage:
        """See `BlockLog.tail`."""
        return await self._ask(partial(self._memory.tail, cursor, wait_s))

    async def close(self) -> None:
        """Nothing is held."""

    async def _ask(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Carry out a call: there, the server's part, and back."""
        server, network = self._server, self._server.network
        lost = server.random() if server.losses else 1.0
        if self._out_of_reach() or lost < server.losses / 2:
            await self._fail()
        there: asyncio.Future[None] = network.loop.create_future()
        network.loop.call_later(network.delay_s(self._host, server.host), _arrive, there)
        await there
        result = await call()
        if lost < server.losses or self._out_of_reach():
            await self._fail()
        return result

    def _out_of_reach(self) -> bool:
        server = self._server
        return server.away or (server.network.disturbed and server.network.is_cut(self._host, server.host))

    async def _fail(self) -> None:
        await asyncio.sleep(self._server.call_timeout_s)
        message = "the directory's server does not answer"
        raise PartUnavailable(message)


def _arrive(there: "asyncio.Future[None]") -> None:
    if not there.done():
        there.set_result(None)
