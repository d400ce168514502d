"""An exporter and an importer in one process, joined by queues."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from cluster_core.errors import WorkerLost
from cluster_core.handoff import ExporterMessage, ImporterMessage, in_turn
from cluster_core.identity import Attempt, Incarnation, WorkerId
from kv_transfer.exporter import Exporter
from kv_transfer.import_job import ImportJob
from kv_transfer.importer import Importer
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Transport
from tests.kv_transfer.fake_pool import ATTEMPT, LAYOUT, REQUEST, FakePool, hashes_of

EXPORTER_LIFE = Incarnation(11)
SETTINGS = TransferSettings(
    transport="loopback", open_timeout_s=5.0, pull_timeout_s=5.0, settle_timeout_s=0.05, ucx_keepalive_s=0.2
)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Channel:
    """A stream between the two, with a hand on each direction."""

    to_exporter: "asyncio.Queue[ImporterMessage | None]" = field(default_factory=asyncio.Queue)
    to_importer: "asyncio.Queue[ExporterMessage | None]" = field(default_factory=asyncio.Queue)
    heard: list[ExporterMessage] = field(default_factory=list)
    said: list[ImporterMessage] = field(default_factory=list)
    twist: Callable[[ExporterMessage], list[ExporterMessage]] = lambda message: [message]

    async def send(self, message: ImporterMessage) -> None:
        self.said.append(message)
        self.to_exporter.put_nowait(message)

    async def receive(self) -> ExporterMessage:
        message = await self.to_importer.get()
        if message is None:
            reason = "the stream ended"
            raise WorkerLost(reason)
        return message

    async def serve(self, exporter: Exporter) -> None:
        """Be the exporter's end of the stream until it is over."""
        async for message in exporter.serve(self._requests()):
            self.heard.append(message)
            for said in in_turn(message):
                for twisted in self.twist(said):
                    self.to_importer.put_nowait(twisted)
        self.to_importer.put_nowait(None)

    async def _requests(self) -> AsyncIterator[ImporterMessage]:
        while (message := await self.to_exporter.get()) is not None:
            yield message


def make_exporter(
    transport: Transport,
    pool: FakePool,
    settings: TransferSettings = SETTINGS,
    clock: Callable[[], float] | None = None,
) -> Exporter:
    return Exporter(
        transport=transport,
        memory=pool,
        holds=pool,
        incarnation=EXPORTER_LIFE,
        layout=LAYOUT,
        settings=settings,
        clock=clock or Clock(),
    )


def make_importer(transport: Transport, pool: FakePool, settings: TransferSettings = SETTINGS) -> Importer:
    return Importer(
        transport=transport,
        memory=pool,
        holds=pool,
        worker_id=WorkerId("decode-0"),
        incarnation=Incarnation(22),
        layout=LAYOUT,
        settings=settings,
    )


def job_of(
    tokens: int, first_target: int = 0, kept: frozenset[int] = frozenset(), attempt: Attempt = ATTEMPT
) -> ImportJob:
    return ImportJob(
        request_id=REQUEST,
        attempt=attempt,
        exporter=WorkerId("prefill-0"),
        exporter_incarnation=EXPORTER_LIFE,
        targets=tuple(first_target + position for position in range(LAYOUT.blocks_for(tokens))),
        kept=kept,
        hashes=hashes_of(tokens),
    )
