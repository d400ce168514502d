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
from collections.abc import Callable, Coroutine, Sequence
from typing import assert_never

from cluster_core.errors import BatonError, LegFailed, TransferFailed, WorkerLost
from cluster_core.failpoints import are_on, reach
from cluster_core.handoff import (
    EXACT,
    AcceptBlocks,
    BlocksSealed,
    ExporterMessage,
    ExportFinished,
    ExportOpened,
    HandoffReport,
    ImporterMessage,
    OpenExport,
    OpenFetch,
    Opening,
    PullBlocks,
    RejectBlocks,
    in_turn,
)
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.layout import KvLayout
from kv_transfer.digest import BlockDigests
from kv_transfer.import_job import HandoffChannel, Imported, ImportJob
from kv_transfer.import_session import Expectation, ImporterSession, ImporterState
from kv_transfer.import_times import ImportTimes
from kv_transfer.inbox import Inbox
from kv_transfer.link_book import LinkBook
from kv_transfer.memory import BlockHolds, BlockMemory
from kv_transfer.posted_receives import Posted, PostedReceives
from kv_transfer.session import BlockLanded, Complete, GiveUp, ImporterAction, ImporterEvent, PostReceives, Say
from kv_transfer.settings import TransferSettings
from kv_transfer.settling import Settling
from kv_transfer.target_blocks import TargetBlocks
from kv_transfer.transport import Peer, Transport
from kv_transfer.wire import agreed, make_wire

_TAG_ROOM_BITS = 16
"""A pull's tags differ in these lowest bits only; the others are random."""

_TURNS_UNTIL_STEP = 4
"""So many turns of the event loop pass from the end of an import until the engine's thread has its next step."""

_UNHEARD_S = 0.05
"""How long an exporter may go on sealing and sending before it hears that a hand-over was given up."""


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
        self.digests = BlockDigests(memory)
        self.holds = holds
        self.worker_id = worker_id
        self.incarnation = incarnation
        self.layout = layout
        self.settings = settings
        self.clock = clock
        self.links = LinkBook(memory.block_bytes, settings)
        self.wire = make_wire(settings, layout, memory)
        self.settling = Settling()
        """Receives of hand-overs that were given up."""
        self.receives = PostedReceives(self.settling)
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
        return len(self.settling)

    def let_end(self, ending: Coroutine[None, None, None]) -> None:
        """Run what remains of a hand-over after its success."""
        task = asyncio.create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Abort what still settles. The transport's own closing comes after."""
        tasks = list(self._ending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self.settling.close(), return_exceptions=True)


class _Import:
    """One hand-over under way."""

    def __init__(self, importer: Importer, job: ImportJob, channel: HandoffChannel) -> None:
        expected = Expectation(
            blocks=len(job.targets),
            kept=job.kept | frozenset(range(job.first)),
            hashes=job.hashes,
            block_size_tokens=importer.layout.block_size_tokens,
            blocks_in_flight=importer.links.blocks_in_flight(job.exporter),
            lent=job.lent,
        )
        self._importer = importer
        self._job = job
        self._channel = channel
        self._session = ImporterSession(expected, draw_tag)
        self._inbox: Inbox[ImporterEvent | BatonError] = Inbox()
        self._targets = TargetBlocks(importer.memory, importer.digests, importer.holds, job.targets, job.hashes, self)
        self._peer: Peer | None = None
        self._wire = None if job.lent else importer.wire  # what is fetched must be exact: others will find it
        news_s = importer.links.news_s(job.exporter, job.exporter_incarnation)
        self._times = ImportTimes(importer.clock, news_s)
        self._moved = 0

    async def run(self) -> Imported:
        patience_s = self._importer.settings.settle_timeout_s
        reading = asyncio.create_task(self._read())
        try:
            self._times.opening()
            await self._say(self._opening())
            while True:
                event = await self._next_event()
                if are_on():
                    await self._pass_failpoints(event)
                if isinstance(event, ExportOpened):
                    self._peer = await self._importer.transport.connect(event.exporter_transport_address)
                    self._targets.wire = agreed(self._wire, event.wire_format)
                actions = self._session.handle(event)
                for place, action in enumerate(actions, start=1):
                    if (imported := await self._perform(action)) is not None:
                        self._importer.let_end(self._say_the_rest(actions[place:], reading))
                        return imported
        except BaseException as error:
            reading.cancel()
            if isinstance(error, WorkerLost):
                patience_s = 0.0
            raise
        finally:
            self._targets.listener = None
            self._job.remains.verified = self._targets.exact(self._session.verified)
            if pending := self._targets.pending():
                assert self._peer is not None, "receives are posted on a peer"
                if not self._session.awaits_bytes:
                    patience_s = min(patience_s, _UNHEARD_S)
                self._importer.settling.add(self._peer, pending, patience_s)

    def _opening(self) -> Opening:
        job = self._job
        opening = OpenExport(
            request_id=job.request_id,
            attempt=job.attempt,
            exporter_incarnation=job.exporter_incarnation,
            importer=self._importer.worker_id,
            importer_incarnation=self._importer.incarnation,
            importer_transport_address=self._importer.transport.address,
            layout=self._importer.layout.describe(),
            binding=job.binding,
            wire=self._wire.offer(job.exporter, job.exporter_incarnation, self._importer.links) if self._wire else None,
        )
        return OpenFetch(opening=opening, first=job.first, hashes=job.hashes[job.first :]) if job.lent else opening

    async def _read(self) -> None:
        while True:
            try:
                message = await self._channel.receive()
            except BatonError as error:
                self._inbox.put(error)
                return
            for each in in_turn(message):
                self._note_heard(each)
                self._inbox.put(each)

    def _note_heard(self, message: ExporterMessage) -> None:
        match message:
            case ExportOpened(waited_s=waited_s):
                self._times.answered(waited_s)
            case BlocksSealed(blocks=blocks, filled_s=filled_s, pulled_s=pulled_s):
                self._times.filled((block.position for block in blocks), filled_s, pulled_s)
            case ExportFinished(ended_s=ended_s):
                self._times.ended(ended_s)
            case _:
                pass

    async def _next_event(self) -> ImporterEvent:
        if not self._inbox:
            await self._wait_for_event()
        event = self._inbox.take()
        if isinstance(event, LegFailed):
            raise event
        if isinstance(event, BatonError):
            self._session.distrust()
            await self._refuse(str(event))
            raise TransferFailed(str(event)) from event
        return event

    async def _wait_for_event(self) -> None:
        settings = self._importer.settings
        if self._session.state is ImporterState.OPENING:
            waits_for, patience_s = "the export to open", settings.open_timeout_s + settings.grace_s
        elif self._session.awaits_bytes:
            waits_for, patience_s = "blocks", settings.pull_timeout_s
        else:
            waits_for, patience_s = "the prefill", settings.prefill_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                await self._inbox.wait()
        except TimeoutError as error:
            message = f"{self._job.exporter}: waited {patience_s} s for {waits_for}"
            raise TransferFailed(message) from error

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
        """Accept, after the answer's step was planned, and read the channel to its end.

        An exporter that does not hear it lets go when the stream ends.
        """
        try:
            for _ in range(_TURNS_UNTIL_STEP):
                await asyncio.sleep(0)
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
        if are_on():
            await self._pass_failpoints(action)
        match action:
            case PostReceives():
                assert self._peer is not None, "the export is open"
                self._times.pulled(action.positions)
                receive = self._targets.post(self._peer, action)
                self._importer.receives.add(action.tag, Posted(self._job.request_id, receive, self._targets))
            case Say(message=message):
                if isinstance(message, PullBlocks):
                    self._times.pulling()
                # A rejection that does not get through changes nothing: what follows is the error itself.
                refused = self._session.state is ImporterState.REFUSED
                with contextlib.suppress(LegFailed) if refused else contextlib.nullcontext():
                    await self._say(message)
            case Complete(first_token_id=first, fork_token_ids=forks):
                rounded = self._targets.wire is not None and self._moved > 0
                return Imported(first_token_id=first, fork_token_ids=forks, report=self._report(), rounded=rounded)
            case GiveUp(error=error):
                raise error
            case _:
                assert_never(action)
        return None

    def landed(self, position: int, digest: bytes) -> None:
        """Take a block that has come."""
        self._moved += 1
        self._times.landed(position)
        self._inbox.put(BlockLanded(position=position, digest=digest))

    def failed(self, positions: Sequence[int], error: BaseException) -> None:
        """Take that blocks will not come."""
        kind = WorkerLost if isinstance(error, WorkerLost) else TransferFailed
        self._inbox.put(kind(f"blocks {positions} did not arrive: {error}"))

    async def _pass_failpoints(self, what: ImporterEvent | ImporterAction) -> None:
        """Let a test stop the hand-over before it takes an event, or performs an action."""
        match what:
            case ExportOpened():
                await reach("xfer.connect")
            case PostReceives():
                await reach("xfer.post")
            case Say(message=PullBlocks()):
                await reach("d.pull.start")
            case BlockLanded():
                await reach("xfer.landed")
                if 2 * self._moved >= len(self._job.targets) - len(self._job.kept):
                    await reach("d.pull.mid")
            case Say(message=AcceptBlocks()):
                await reach("xfer.accept")
            case _:
                pass

    def _report(self) -> HandoffReport:
        spans, wire = self._times.spans(), self._targets.wire
        at_once = wire.lot_blocks if wire is not None else len(self._job.targets)
        return HandoffReport(
            moved_blocks=self._moved,
            kept_blocks=len(self._job.kept),
            moved_bytes=self._moved * self._targets.travelling_bytes,
            messages=sum(-(-blocks // at_once) for blocks in spans.lots),
            transfer_s=spans.transfer_s,
            exposed_s=spans.exposed_s,
            transport=self._importer.transport.name,
            exact_bytes=self._moved * self._importer.memory.block_bytes,
            wire_format=EXACT if wire is None else wire.format,
            overlapped_s=spans.overlapped_s,
            unsure_s=spans.unsure_s,
        )
