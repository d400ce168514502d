"""The prefill worker's side of a hand-over: drives `kv_transfer.export_session`.

Life of an export. The worker opens it with a request, seals blocks as their chunks are computed (each takes a
`LeaseHold`, so the request may end without them), and finishes it with the first token. An importer's stream attaches
to it, early or late, and pulls. The lease ends when the importer accepts, when anything fails, or when nobody listens
any more: ``lease_s`` after the prefill, or ``grace_s`` where a stream has come and broken. An ended export stays known
for ``lease_s``, so that who comes too late hears why.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from cluster_core.blocks import BlockReference
from cluster_core.errors import BatonError, ExportGone, LegFailed, TransferFailed, WorkerLost
from cluster_core.handoff import ExporterMessage, ExportFailed, ImporterMessage, OpenExport
from cluster_core.holds import LeaseHold
from cluster_core.identity import Attempt, BlockHash, Incarnation, RequestId
from cluster_core.layout import KvLayout
from kv_transfer.digest import DigestMemo
from kv_transfer.export_session import ExporterSession, ExporterState
from kv_transfer.memory import BlockHolds, BlockMemory
from kv_transfer.session import (
    Answer,
    BlocksRead,
    BlocksReady,
    ExporterEvent,
    ImporterLeft,
    LeaseExpired,
    PrefillFailed,
    PrefillFinished,
    ReleaseLease,
    SendBlocks,
)
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Peer, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBlock:
    """A block of the own pool whose content is final."""

    position: int
    index: int
    hash: BlockHash | None
    """None for a prompt's last block when it is not full."""
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportMemory:
    """Where an export's blocks lie, and who keeps them."""

    memory: BlockMemory
    holds: BlockHolds
    layout: KvLayout
    digests: DigestMemo


class Listener:
    """An attached importer: what is to be told to it, and the sends that it asked for."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.answers: asyncio.Queue[ExporterMessage | None] = asyncio.Queue()
        self.sending: set[asyncio.Task[None]] = set()

    def end(self, error: LegFailed | None = None) -> None:
        """End the stream after what is queued, and after ``error`` if there is one."""
        if error is not None:
            self.answers.put_nowait(ExportFailed(reason=str(error)))
        self.answers.put_nowait(None)


class Export:
    """One request's blocks on offer. Made by `Exporter.open`; belongs to the event loop."""

    def __init__(
        self,
        lease: LeaseHold,
        session: ExporterSession,
        blocks: ExportMemory,
        settings: TransferSettings,
        clock: Callable[[], float],
    ) -> None:
        self.lease = lease
        self.deadline: float | None = None
        """When the lease ends by itself, or when an ended export is forgotten. None: not yet."""
        self._session = session
        self._blocks = blocks
        self._settings = settings
        self._clock = clock
        self._listener: Listener | None = None
        self._was_served = False

    def seal(self, blocks: Sequence[SealedBlock]) -> None:
        """Offer blocks whose content is final, positions ascending. Without effect once the export is over.

        Takes a lease hold on each and computes its digest here and now (about 0.1 ms for 1 MiB), unless it was sealed
        before: so a prefix from the cache costs nothing, and a bit of it that has flipped since shows at the importer.
        """
        if self._session.over:
            return
        self._feed(BlocksReady(blocks=tuple(self._offer(block) for block in blocks)))

    def _offer(self, block: SealedBlock) -> BlockReference:
        memory, holds = self._blocks.memory, self._blocks.holds
        holds.acquire(block.index, self.lease)
        if block.tokens < self._blocks.layout.block_size_tokens:
            memory.clear_unused(block.index, block.tokens)
        generation = holds.generation(block.index)
        return BlockReference(
            position=block.position,
            index=block.index,
            generation=generation,
            hash=block.hash,
            digest=self._blocks.digests.digest(memory, block.index, generation, block.position, block.hash),
            tokens=block.tokens,
        )

    def finish(self, first_token_id: int, fork_token_ids: tuple[int, ...] = ()) -> None:
        """Say that every block is sealed, and the first token of each choice. Without effect once it is over."""
        if self._session.over:
            return
        self._feed(PrefillFinished(first_token_id=first_token_id, fork_token_ids=fork_token_ids))
        if self._listener is None:
            patience_s = self._settings.grace_s if self._was_served else self._settings.lease_s
            self.deadline = self._clock() + patience_s

    def fail(self, reason: str) -> None:
        """Take the offer back: the importer hears ``reason``. Without effect once the export is over."""
        self._feed(PrefillFailed(reason=reason))

    @property
    def over(self) -> bool:
        """Whether the lease was given back."""
        return self._session.over

    def attach(self, listener: Listener, opening: OpenExport) -> None:
        """Serve ``listener`` from now on. Raises `ExportGone` when the export is over or serves another one."""
        if self.over:
            message = f"request {self.lease.request_id} is not exported any more: {self._session.end_reason}"
            raise ExportGone(message)
        if self._listener is not None:
            message = f"request {self.lease.request_id} is being handed over already"
            raise ExportGone(message)
        self._listener = listener
        self._was_served = True
        self.deadline = None
        self._feed(opening)

    def hear(self, message: ImporterMessage) -> None:
        """Take a message of the attached importer. Raises `TransferFailed` when it may not say that now."""
        self._feed(message)

    def detach(self) -> None:
        """Note that the importer's stream is over."""
        self._listener = None
        if self.over:
            return
        self._feed(ImporterLeft())
        if self._session.state is ExporterState.WAITING:
            self.deadline = self._clock() + self._settings.grace_s

    def expire(self) -> None:
        """End a lease that nobody claimed in time."""
        self._feed(LeaseExpired())

    def _feed(self, event: ExporterEvent) -> None:
        for action in self._session.handle(event):
            match action:
                case Answer(message=message):
                    assert self._listener is not None, "only a listener is answered"
                    self._listener.answers.put_nowait(message)
                case SendBlocks():
                    assert self._listener is not None, "only a listener pulls"
                    task = asyncio.create_task(self._send(self._listener, action))
                    self._listener.sending.add(task)
                    task.add_done_callback(self._listener.sending.discard)
                case ReleaseLease():
                    self._blocks.holds.release(self.lease)
                    self.deadline = self._clock() + self._settings.lease_s
                    if self._listener is not None:
                        self._listener.end()
                case _:
                    assert_never(action)

    async def _send(self, listener: Listener, action: SendBlocks) -> None:
        memory, holds = self._blocks.memory, self._blocks.holds
        try:
            sends = [
                listener.peer.send(memory.buffer(block.index), action.tag + number) for number, block in action.numbered
            ]
            _done, pending = await asyncio.wait(sends, timeout=self._settings.pull_timeout_s)
            if pending:
                message = f"{len(pending)} blocks were not fetched within {self._settings.pull_timeout_s} s"
                raise TransferFailed(message)
            for send in sends:
                send.result()
        except LegFailed as error:
            listener.end(error)
            return
        echoes = tuple(replace(block, generation=holds.generation(block.index)) for _, block in action.numbered)
        self._feed(BlocksRead(tag=action.tag, blocks=echoes))


class Exporter:
    """All exports of one worker. ``sweep`` must be called now and then."""

    def __init__(  # noqa: PLR0913  # a composition root names each part
        self,
        *,
        transport: Transport,
        memory: BlockMemory,
        holds: BlockHolds,
        incarnation: Incarnation,
        layout: KvLayout,
        settings: TransferSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.expired = 0
        """Leases that ended because nobody came."""
        self.orphaned = 0
        """Lease holds that were found on blocks after their export had given them back: always 0 without a bug."""
        self._transport = transport
        self._blocks = ExportMemory(memory=memory, holds=holds, layout=layout, digests=DigestMemo())
        self._incarnation = incarnation
        self._settings = settings
        self._clock = clock
        self._exports: dict[RequestId, Export] = {}
        self._opened = asyncio.Event()

    def open(self, request_id: RequestId, attempt: Attempt) -> Export:
        """Offer a request's blocks; an older attempt's offer is taken back.

        Raises `ExportGone` when this attempt, or a later one, was offered before.
        """
        known = self._exports.get(request_id)
        if known is not None:
            if known.lease.attempt >= attempt:
                message = (
                    f"attempt {attempt} of request {request_id} is over: attempt {known.lease.attempt} was exported"
                )
                raise ExportGone(message)
            known.fail(f"attempt {attempt} took its place")
            self.orphaned += self._blocks.holds.release(known.lease)
        session = ExporterSession(self._settings.lease_s, self._transport.address)
        lease = LeaseHold(request_id, attempt)
        export = self._exports[request_id] = Export(lease, session, self._blocks, self._settings, self._clock)
        self._opened.set()
        self._opened = asyncio.Event()
        return export

    async def serve(self, messages: AsyncIterator[ImporterMessage]) -> AsyncIterator[ExporterMessage]:
        """Serve one importer's stream, from its `OpenExport` to the end; never raises for what the importer does."""
        try:
            opening, export = await self._open_for(messages)
            listener = Listener(await self._transport.connect(opening.importer_transport_address))
            export.attach(listener, opening)
        except BatonError as error:
            yield ExportFailed(reason=str(error))
            return
        reading = asyncio.create_task(_read(messages, export, listener))
        try:
            while (answer := await listener.answers.get()) is not None:
                yield answer
        finally:
            export.detach()
            tasks = (reading, *listener.sending)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open_for(self, messages: AsyncIterator[ImporterMessage]) -> tuple[OpenExport, Export]:
        try:
            async with asyncio.timeout(self._settings.open_timeout_s):
                opening = await anext(messages, None)
                if not isinstance(opening, OpenExport):
                    message = "a hand-over begins with OpenExport"
                    raise TransferFailed(message)
                self._check(opening)
                while (export := self._find(opening)) is None:
                    await self._opened.wait()
        except TimeoutError as error:
            message = f"nothing was exported within {self._settings.open_timeout_s} s"
            raise ExportGone(message) from error
        return opening, export

    def _check(self, opening: OpenExport) -> None:
        if opening.exporter_incarnation != self._incarnation:
            message = "this worker was restarted; what its earlier life exported is gone"
            raise ExportGone(message)
        if opening.layout != self._blocks.layout.describe():
            message = f"layouts differ: blocks here are {self._blocks.layout.describe()}, there {opening.layout}"
            raise TransferFailed(message)

    def _find(self, opening: OpenExport) -> Export | None:
        export = self._exports.get(opening.request_id)
        if export is None or export.lease.attempt < opening.attempt:
            return None
        if export.lease.attempt > opening.attempt:
            message = f"attempt {opening.attempt} of request {opening.request_id} is over"
            raise ExportGone(message)
        return export

    def close(self, reason: str) -> None:
        """Take back every offer: the importers hear ``reason``."""
        for export in self._exports.values():
            export.fail(reason)

    async def sweep(self) -> int:
        """End the leases whose time is up and forget what ended long ago; returns how many leases ended."""
        now, ended = self._clock(), 0
        for request_id, export in list(self._exports.items()):
            if export.deadline is None or export.deadline > now:
                continue
            if export.over:
                self.orphaned += self._blocks.holds.release(export.lease)
                del self._exports[request_id]
            else:
                export.expire()
                ended += 1
        self.expired += ended
        return ended


async def _read(messages: AsyncIterator[ImporterMessage], export: Export, listener: Listener) -> None:
    """Feed the importer's messages to ``export`` until they end or make no sense."""
    try:
        async for message in messages:
            export.hear(message)
    except BatonError as error:
        listener.end(error if isinstance(error, LegFailed) else TransferFailed(str(error)))
    else:
        listener.end(None if export.over else WorkerLost("the importer ended its stream"))
