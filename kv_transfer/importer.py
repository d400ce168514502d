"""The decode worker's side of a hand-over: drives `kv_transfer.import_session`.

Life of a target block. The worker reserved it for the request. When a receive is posted into it, it gets a
`WriterHold` besides, under the receive's tag, and that hold goes when the receive's future is done: then, and only
then, no byte can land any more. So whatever becomes of the request (cancelled, timed out, refused), its blocks are
nobody else's before that. What is still under way when a hand-over is given up gets ``settle_timeout_s`` to land;
then its receives, and at once those of blocks that were not even sealed, are aborted.
"""

import asyncio
import contextlib
import secrets
import time
from asyncio import Future
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, assert_never

from cluster_core.errors import BatonError, LegFailed, TransferFailed, WorkerLost
from cluster_core.handoff import (
    ExporterMessage,
    ExportFinished,
    ExportOpened,
    HandoffReport,
    ImporterMessage,
    OpenExport,
    RejectBlocks,
)
from cluster_core.holds import WriterHold
from cluster_core.identity import Attempt, BlockHash, Incarnation, RequestId, WorkerId
from cluster_core.layout import KvLayout
from kv_transfer.digest import block_digest
from kv_transfer.import_session import Expectation, ImporterSession, ImporterState
from kv_transfer.memory import BlockHolds, BlockMemory
from kv_transfer.session import BlockLanded, Complete, GiveUp, ImporterAction, ImporterEvent, PostReceives, Say
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Peer, Transport

_TAG_ROOM_BITS = 16
"""A pull's tags differ in these lowest bits only; the others are random."""


_UNHEARD_S = 0.05
"""How long an exporter may go on sealing and sending before it hears that a hand-over was given up."""


class HandoffChannel(Protocol):
    """The stream to the exporter."""

    async def send(self, message: ImporterMessage) -> None:
        """Send; raises `WorkerLost` when the stream has ended, or another `BatonError` that ended it."""
        ...

    async def receive(self) -> ExporterMessage:
        """Return the next message.

        Raises `WorkerLost` at the stream's end, and another `BatonError` for what ended it or cannot be a message.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportJob:
    """What to fetch, from whom, and into which own blocks."""

    request_id: RequestId
    attempt: Attempt
    exporter: WorkerId
    exporter_incarnation: Incarnation
    targets: tuple[int, ...]
    """Own block index for each position of the whole prompt."""
    kept: frozenset[int]
    """Positions whose target holds the right content already."""
    hashes: tuple[BlockHash, ...]
    """Expected hashes of the full blocks."""
    first: int = 0
    """Positions below it lie before every layer's window: nothing reads them, so they are neither wanted nor kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The targets hold the prompt's KV."""

    first_token_id: int
    report: HandoffReport
    fork_token_ids: tuple[int, ...] = ()
    """The first tokens of the other choices, where the request has several."""


def draw_tag() -> int:
    """Draw the first tag of a pull."""
    return secrets.randbits(64 - _TAG_ROOM_BITS) << _TAG_ROOM_BITS


class Importer:
    """All imports of one worker."""

    def __init__(  # noqa: PLR0913  # a composition root names each part
        self,
        *,
        transport: Transport,
        memory: BlockMemory,
        holds: BlockHolds,
        worker_id: WorkerId,
        incarnation: Incarnation,
        layout: KvLayout,
        settings: TransferSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transport = transport
        self.memory = memory
        self.holds = holds
        self.worker_id = worker_id
        self.incarnation = incarnation
        self.layout = layout
        self.settings = settings
        self.clock = clock
        self._settling: dict[asyncio.Task[None], Peer] = {}
        self._unsettled: set[Future[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, job: ImportJob, channel: HandoffChannel) -> Imported:
        """Fetch and check the blocks of ``job``; returns when all of them may be read.

        Raises `ExportGone`, `WorkerLost` or `TransferFailed`. However it ends, and also when it is cancelled, a target
        keeps its writer hold while bytes may still land in it. After success ``channel`` is read on until the exporter
        ends it, at most ``grace_s``: cancelling a stream at once could overtake the acceptance on it.
        """
        return await _Import(self, job, channel).run()

    @property
    def quarantined(self) -> int:
        """Blocks of hand-overs that were given up into which bytes may still land."""
        return len(self._unsettled)

    def settle(self, peer: Peer, receives: set[Future[None]], patience_s: float) -> None:
        """Let ``receives`` of a hand-over that was given up come to their end, after ``patience_s`` by force."""
        self._unsettled.update(receives)
        for receive in receives:
            receive.add_done_callback(self._unsettled.discard)
        task = asyncio.create_task(_settle(peer, receives, patience_s))
        self._settling[task] = peer
        task.add_done_callback(self._settling.pop)

    def let_end(self, ending: Coroutine[None, None, None]) -> None:
        """Run what remains of a hand-over after its success."""
        task = asyncio.create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Abort what still settles. The transport's own closing comes after."""
        tasks = [*self._settling, *self._ending]
        for task in self._ending:
            task.cancel()
        for task, peer in self._settling.items():
            peer.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _settle(peer: Peer, receives: set[Future[None]], patience_s: float) -> None:
    if patience_s > 0:
        await asyncio.wait(receives, timeout=patience_s)
    peer.abort()


class _Import:
    """One hand-over under way."""

    def __init__(self, importer: Importer, job: ImportJob, channel: HandoffChannel) -> None:
        expected = Expectation(
            blocks=len(job.targets),
            kept=job.kept | frozenset(range(job.first)),
            hashes=job.hashes,
            block_size_tokens=importer.layout.block_size_tokens,
            blocks_in_flight=importer.settings.blocks_in_flight,
        )
        self._importer = importer
        self._job = job
        self._channel = channel
        self._session = ImporterSession(expected, draw_tag)
        self._inbox: asyncio.Queue[ImporterEvent | BatonError] = asyncio.Queue()
        self._receives: set[Future[None]] = set()
        self._peer: Peer | None = None
        self._moved = 0
        self._moving_since: float | None = None
        self._moving_s = 0.0
        self._finished_at = 0.0
        self._given_up = False

    async def run(self) -> Imported:
        patience_s = self._importer.settings.settle_timeout_s
        reading = asyncio.create_task(self._read())
        try:
            await self._say(self._opening())
            while True:
                event = await self._next_event()
                if isinstance(event, ExportOpened):
                    self._peer = await self._importer.transport.connect(event.exporter_transport_address)
                actions = self._session.handle(event)
                for place, action in enumerate(actions, start=1):
                    if (imported := await self._perform(action)) is not None:
                        self._importer.let_end(self._say_the_rest(actions[place:], reading))
                        return imported
                self._note_moving()
        except BaseException as error:
            reading.cancel()
            if isinstance(error, WorkerLost):
                patience_s = 0.0
            raise
        finally:
            self._given_up = True
            if self._receives:
                assert self._peer is not None, "receives are posted on a peer"
                if not self._session.awaits_bytes:
                    patience_s = min(patience_s, _UNHEARD_S)
                self._importer.settle(self._peer, set(self._receives), patience_s)

    def _opening(self) -> OpenExport:
        return OpenExport(
            request_id=self._job.request_id,
            attempt=self._job.attempt,
            exporter_incarnation=self._job.exporter_incarnation,
            importer=self._importer.worker_id,
            importer_incarnation=self._importer.incarnation,
            importer_transport_address=self._importer.transport.address,
            layout=self._importer.layout.describe(),
        )

    async def _read(self) -> None:
        while True:
            try:
                message = await self._channel.receive()
            except BatonError as error:
                self._inbox.put_nowait(error)
                return
            if isinstance(message, ExportFinished):
                self._finished_at = self._importer.clock()
            self._inbox.put_nowait(message)

    async def _next_event(self) -> ImporterEvent:
        settings = self._importer.settings
        if self._session.state is ImporterState.OPENING:
            waits_for, patience_s = "the export to open", settings.open_timeout_s + settings.grace_s
        elif self._session.awaits_bytes:
            waits_for, patience_s = "blocks", settings.pull_timeout_s
        else:
            waits_for, patience_s = "the prefill", settings.prefill_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                event = await self._inbox.get()
        except TimeoutError as error:
            message = f"{self._job.exporter}: waited {patience_s} s for {waits_for}"
            raise TransferFailed(message) from error
        if isinstance(event, LegFailed):
            raise event
        if isinstance(event, BatonError):
            await self._refuse(str(event))
            raise TransferFailed(str(event)) from event
        return event

    async def _say(self, message: ImporterMessage) -> None:
        try:
            async with asyncio.timeout(self._importer.settings.pull_timeout_s):
                await self._channel.send(message)
        except TimeoutError as error:
            reason = f"{self._job.exporter} takes no messages"
            raise WorkerLost(reason) from error
        except LegFailed:
            raise
        except BatonError as error:
            raise TransferFailed(str(error)) from error

    async def _say_the_rest(self, actions: Sequence[ImporterAction], reading: asyncio.Task[None]) -> None:
        """Accept, and read the channel to its end. An exporter that does not hear it lets go when the stream ends."""
        try:
            with contextlib.suppress(LegFailed):
                for action in actions:
                    await self._perform(action)
            await asyncio.wait({reading}, timeout=self._importer.settings.grace_s)
        finally:
            reading.cancel()

    async def _refuse(self, reason: str) -> None:
        """Tell the exporter that the hand-over is over, if it still listens."""
        with contextlib.suppress(LegFailed):
            await self._say(RejectBlocks(reason=reason, positions=()))

    async def _perform(self, action: ImporterAction) -> Imported | None:
        match action:
            case PostReceives():
                self._post(action)
            case Say(message=message):
                # A rejection that does not get through changes nothing: what follows is the error itself.
                refused = self._session.state is ImporterState.REFUSED
                with contextlib.suppress(LegFailed) if refused else contextlib.nullcontext():
                    await self._say(message)
            case Complete(first_token_id=first, fork_token_ids=forks):
                return Imported(first_token_id=first, fork_token_ids=forks, report=self._report())
            case GiveUp(error=error):
                raise error
            case _:
                assert_never(action)
        return None

    def _post(self, action: PostReceives) -> None:
        assert self._peer is not None, "the export is open"
        for number, position in enumerate(action.positions):
            index, tag = self._job.targets[position], action.tag + number
            hold = WriterHold(tag)
            self._importer.holds.acquire(index, hold)
            try:
                receive = self._peer.receive(self._importer.memory.buffer(index), tag)
            except BaseException:
                self._importer.holds.release_block(index, hold)
                raise
            self._receives.add(receive)
            receive.add_done_callback(partial(self._landed, position, hold))

    def _landed(self, position: int, hold: WriterHold, receive: Future[None]) -> None:
        index = self._job.targets[position]
        self._importer.holds.release_block(index, hold)
        self._receives.discard(receive)
        error = receive.exception()
        if self._given_up:
            return
        if error is not None:
            self._inbox.put_nowait(TransferFailed(f"block {position} did not arrive: {error}"))
            return
        self._moved += 1
        known = self._job.hashes[position] if position < len(self._job.hashes) else None
        digest = block_digest(self._importer.memory.buffer(index), position, known)
        self._inbox.put_nowait(BlockLanded(position=position, digest=digest))

    def _note_moving(self) -> None:
        """Count the time in which blocks are under way: between two chunks of the prefill there may be none."""
        now, moving = self._importer.clock(), self._session.awaits_bytes
        if self._moving_since is not None and not moving:
            self._moving_s += now - self._moving_since
            self._moving_since = None
        elif self._moving_since is None and moving:
            self._moving_since = now

    def _report(self) -> HandoffReport:
        self._note_moving()
        now = self._importer.clock()
        return HandoffReport(
            moved_blocks=self._moved,
            kept_blocks=len(self._job.kept),
            moved_bytes=self._moved * self._importer.memory.block_bytes,
            messages=self._moved,
            transfer_s=self._moving_s,
            exposed_s=now - self._finished_at,
            transport=self._importer.transport.name,
        )
