"""The prefill worker's side of a hand-over: drives `kv_transfer.export_session`.

Life of an export. The worker opens it with a request, seals blocks as their chunks are computed (each takes a
`LeaseHold`, so the request may end without them), and finishes it with the first token. An importer's stream attaches
to it, early or late, and pulls; one that was bound to the request later takes its place. The lease ends when the
importer accepts, when anything fails, or when nobody listens any more: ``lease_s`` after the prefill, or ``grace_s``
where a stream has come and broken. An ended export stays known for ``lease_s``, so that who comes too late hears why.

A **loan** is an export that an importer begins: it names hashes, and what the cache has of them is sealed at once, as
by a prefill that has ended. It is known to nobody else and ends with its stream.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import assert_never

from cluster_core.errors import BatonError, ExportGone, LegFailed, TransferFailed, WorkerLost
from cluster_core.failpoints import copies, hit
from cluster_core.handoff import (
    AcceptBlocks,
    ExporterMessage,
    ExportFailed,
    ImporterMessage,
    OpenExport,
    OpenFetch,
    PullBlocks,
)
from cluster_core.holds import LeaseHold
from cluster_core.identity import Attempt, Incarnation, RequestId
from cluster_core.layout import KvLayout
from kv_transfer.digest import BlockDigests, DigestMemo
from kv_transfer.export_memory import ExportMemory, SealedBlock
from kv_transfer.export_session import ExporterSession, ExporterState
from kv_transfer.lending import FindRun, lend_nothing, seal_run
from kv_transfer.listener import Listener
from kv_transfer.lot_sending import LotSending
from kv_transfer.memory import BlockHolds, BlockMemory
from kv_transfer.orphans import give_back_orphans
from kv_transfer.session import (
    Answer,
    BlocksFilled,
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
from kv_transfer.stream_times import StreamTimes
from kv_transfer.transport import Transport
from kv_transfer.wire import make_wire


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
        self._binding = 0
        """Of the last listener; one of a lower number is late."""
        self._was_served = False
        self._filled_at_s = clock()
        """When blocks were sealed last."""
        self._ended = asyncio.Event()

    def seal(self, blocks: Sequence[SealedBlock]) -> None:
        """Offer blocks whose content is final, positions ascending. Without effect once the export is over.

        Takes a lease hold on each, sends those that were pulled, and computes their digests while the bytes are on
        their way (about 0.1 ms for 1 MiB), unless a block was sealed before: so a prefix from the cache costs nothing,
        and a bit of it that has flipped since shows at the importer.
        """
        if self._session.over:
            return
        self._filled_at_s = self._clock()
        promised = tuple(self._blocks.promise(block, self.lease) for block in blocks)
        self._feed(BlocksFilled(blocks=promised))
        self._feed(BlocksReady(blocks=self._blocks.seal(promised)))

    def finish(self, first_token_id: int, fork_token_ids: tuple[int, ...] = ()) -> None:
        """Say that every block is sealed, and the first token of each choice. Without effect once it is over.

        The importer is told that the prefill ended when `seal` was last called: its last step fills the last block.
        """
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

    async def until_over(self) -> None:
        """Wait until the lease has been given back."""
        await self._ended.wait()

    @property
    def claimed(self) -> bool:
        """Whether somebody fetches the blocks: an importer, which has room for them."""
        return self._listener is not None

    def attach(self, listener: Listener, opening: OpenExport) -> None:
        """Serve ``listener`` from now on, and nobody who was bound to the request before it.

        Raises `ExportGone` when the export is over, or serves or has served one that was bound later.
        """
        if self.over:
            message = f"request {self.lease.request_id} is not exported any more: {self._session.end_reason}"
            raise ExportGone(message)
        if opening.binding < self._binding or (self.claimed and opening.binding == self._binding):
            message = f"request {self.lease.request_id} is being handed over already"
            raise ExportGone(message)
        if self._listener is not None:
            self._turn_away(self._listener)
        self._binding = opening.binding
        self._listener = listener
        if (wire := self._blocks.wire) is not None and wire.suits(opening.wire):
            listener.wire = wire
        self._was_served = True
        self.deadline = None
        self._feed(opening)

    def hear(self, listener: Listener, message: ImporterMessage) -> None:
        """Take a message of the attached importer. Raises `TransferFailed` when it may not say that now."""
        if isinstance(message, OpenFetch):
            reason = "a fetch begins a stream"
            raise TransferFailed(reason)
        if listener is self._listener:
            if isinstance(message, PullBlocks):
                listener.times.pulled()
            self._feed(message)

    def detach(self, listener: Listener) -> None:
        """Note that an importer's stream is over."""
        if listener is not self._listener:
            return
        self._listener = None
        if self.over:
            return
        self._feed(ImporterLeft())
        if self._session.state is ExporterState.WAITING:
            self.deadline = self._clock() + self._settings.grace_s

    def _turn_away(self, listener: Listener) -> None:
        """End the stream of an importer whose place another one takes."""
        self._listener = None
        self._feed(ImporterLeft())
        listener.end(ExportGone(f"request {self.lease.request_id} was given to another decode worker"))
        for task in listener.sending:
            task.cancel()

    def expire(self) -> None:
        """End a lease that nobody claimed in time."""
        self._feed(LeaseExpired())

    def _feed(self, event: ExporterEvent) -> None:
        for action in self._session.handle(event):
            match action:
                case Answer(message=message):
                    assert self._listener is not None, "only a listener is answered"
                    self._listener.tell(message, self._filled_at_s)
                case SendBlocks():
                    assert self._listener is not None, "only a listener pulls"
                    LotSending(self._listener, action, self._still_sealed, self._settings.pull_timeout_s).start(
                        self._blocks
                    )
                case ReleaseLease():
                    hit("p.free")
                    self._blocks.holds.release(self.lease)
                    self._ended.set()
                    self.deadline = self._clock() + self._settings.lease_s
                    if self._listener is not None:
                        self._listener.end()
                case _:
                    assert_never(action)

    def _still_sealed(self, action: SendBlocks) -> bool:
        """Fail a live export of which a block is not what was sealed any more: a hold failed, a mistake of ours.

        The importer does not depend on it, since the digest tells it the same; this names the cause.
        """
        if self.over:
            return True
        for _, block in action.numbered:
            if self._blocks.holds.generation(block.index) != block.generation:
                self.fail(f"block {block.position} was reused while it was exported")
                return False
        return True


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
        find_run: FindRun = lend_nothing,
        on_claim: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_claim`` is called when an importer has come for an export."""
        self.expired = 0
        """Leases that ended because nobody came."""
        self.orphaned = 0
        """Lease holds that were found on blocks after their export had given them back: always 0 without a bug."""
        self._transport = transport
        self._blocks = ExportMemory(
            memory=memory,
            holds=holds,
            layout=layout,
            digests=DigestMemo(BlockDigests(memory)),
            wire=make_wire(settings, layout, memory),
        )
        self._incarnation = incarnation
        self._settings = settings
        self._clock = clock
        self._find_run = find_run
        self._on_claim = on_claim
        self._exports: dict[tuple[RequestId, int], Export] = {}
        """By request and, for loans, their number; 0 for what was computed for the request."""
        self._loans = itertools.count(1)
        self._lending: set[asyncio.Task[None]] = set()
        self._opened = asyncio.Event()

    def open(self, request_id: RequestId, attempt: Attempt) -> Export:
        """Offer a request's blocks; an older attempt's offer is taken back.

        Raises `ExportGone` when this attempt, or a later one, was offered before.
        """
        known = self._exports.get((request_id, 0))
        if known is not None:
            if known.lease.attempt >= attempt:
                message = (
                    f"attempt {attempt} of request {request_id} is over: attempt {known.lease.attempt} was exported"
                )
                raise ExportGone(message)
            known.fail(f"attempt {attempt} took its place")
            self.orphaned += give_back_orphans(self._blocks.holds, known.lease, f"life {self._incarnation}")
        export = self._new(LeaseHold(request_id, attempt))
        self._opened.set()
        self._opened = asyncio.Event()
        return export

    def _new(self, lease: LeaseHold) -> Export:
        session = ExporterSession(self._settings.lease_s, self._transport.address)
        export = Export(lease, session, self._blocks, self._settings, self._clock)
        self._exports[lease.request_id, lease.loan] = export
        return export

    def _lend(self, wanted: OpenFetch) -> Export:
        """Return an export into which comes what the cache has of a run of blocks."""
        export = self._new(LeaseHold(wanted.opening.request_id, wanted.opening.attempt, next(self._loans)))
        task = asyncio.create_task(seal_run(export, wanted, self._blocks, self._find_run))
        self._lending.add(task)
        task.add_done_callback(self._lending.discard)
        return export

    async def serve(self, messages: AsyncIterator[ImporterMessage]) -> AsyncIterator[ExporterMessage]:
        """Serve one importer's stream, from its opening to the end; never raises for what the importer does."""
        times = StreamTimes(self._clock)
        try:
            opening, export = await self._open_for(messages, times)
            listener = Listener(await self._transport.connect(opening.importer_transport_address), times)
            export.attach(listener, opening)
            self._on_claim()
        except BatonError as error:
            yield ExportFailed(reason=str(error))
            return
        reading = asyncio.create_task(_read(messages, export, listener))
        try:
            while (answer := await listener.next_answer()) is not None:
                yield answer
        finally:
            export.detach(listener)
            if export.lease.loan:
                export.fail("the fetch is over")
            tasks = (reading, *listener.sending)
            for task in tasks:
                task.cancel()
            listener.peer.abort()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open_for(
        self, messages: AsyncIterator[ImporterMessage], times: StreamTimes
    ) -> tuple[OpenExport, Export]:
        try:
            async with asyncio.timeout(self._settings.open_timeout_s):
                opening = await anext(messages, None)
                times.came()
                if isinstance(opening, OpenFetch):
                    self._check(opening.opening)
                    return opening.opening, self._lend(opening)
                if not isinstance(opening, OpenExport):
                    message = "a hand-over begins with OpenExport or OpenFetch"
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
        export = self._exports.get((opening.request_id, 0))
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

    def keeps(self, lease: LeaseHold) -> bool:
        """Whether an export that is not over has this lease."""
        export = self._exports.get((lease.request_id, lease.loan))
        return export is not None and export.lease == lease and not export.over

    async def sweep(self) -> int:
        """End the leases whose time is up and forget what ended long ago; returns how many leases ended."""
        now, ended = self._clock(), 0
        for name, export in list(self._exports.items()):
            if export.deadline is None or export.deadline > now:
                continue
            if export.over:
                self.orphaned += give_back_orphans(self._blocks.holds, export.lease, f"life {self._incarnation}")
                del self._exports[name]
            else:
                export.expire()
                ended += 1
        self.expired += ended
        return ended


async def _read(messages: AsyncIterator[ImporterMessage], export: Export, listener: Listener) -> None:
    """Feed the importer's messages to ``export`` until they end or make no sense."""
    try:
        async for message in messages:
            for _ in range(await copies("xfer.ack") if isinstance(message, AcceptBlocks) else 1):
                export.hear(listener, message)
    except BatonError as error:
        listener.end(error if isinstance(error, LegFailed) else TransferFailed(str(error)))
    else:
        listener.end(None if export.over else WorkerLost("the importer ended its stream"))
