"""Real importers and exporters over a channel and a transport that the machine moves (failures I3, I4, I8, I12, I16).

Messages wait, arrive twice or never; blocks land late, in halves or torn; both sides cancel at any moment; the exporter
dies and a new life answers; a lease is lost and its blocks are written by others while they are read. Whatever happens:
a hand-over ends in time; what it accepts is the prompt's KV, byte for byte; bytes land in no block that was given to
somebody else; nothing is held afterwards. A hand-over that nobody disturbed succeeds.
"""

import asyncio
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster_core.errors import ExportGone, LegFailed
from cluster_core.holds import LeaseHold, RequestHold, WriterHold
from cluster_core.identity import Attempt, Incarnation, RequestId, WorkerId
from inference_engine.block_pool import NoFreeBlocks
from inference_engine.sequence import FilledBlock
from kv_transfer.export_memory import SealedBlock
from kv_transfer.exporter import Exporter
from kv_transfer.import_job import Imported
from kv_transfer.importer import Importer
from tests.fake_engine import FAKE_LAYOUT
from tests.machines.handover_sides import POOL_BLOCKS, PROMPTS, SETTINGS, SIZE, Handover, Site, import_job, kv_of
from tests.machines.held_transport import HeldNetwork, HeldTransport
from tests.machines.jumping_loop import JumpingLoop

LONGEST_S = 60.0
"""Every wait of the settings is over by then."""
PICKS = st.integers(0, 7)
MOST_LIVE = 4
IMPORTER_COMES = st.sampled_from(["first", "second", "second", "never"])


class HandoverMachine(RuleBasedStateMachine):
    """``prefill`` exports, ``decode`` imports."""

    @initialize()
    def start(self) -> None:
        self.loop = JumpingLoop()
        self.network = HeldNetwork()
        self.handovers: list[Handover] = []
        self.serial = 0
        self.decode = Site()
        self.importer = Importer(
            transport=HeldTransport(self.network),
            memory=self.decode.memory,
            holds=self.decode.pool,
            worker_id=WorkerId("decode-0"),
            incarnation=Incarnation(1),
            layout=FAKE_LAYOUT,
            settings=SETTINGS,
            clock=self.loop.time,
        )
        self._start_exporter()

    def _start_exporter(self) -> None:
        self.serial += 1
        self.life = Incarnation(self.serial)
        self.prefill = Site()
        self.transport = HeldTransport(self.network)
        self.exporter = Exporter(
            transport=self.transport,
            memory=self.prefill.memory,
            holds=self.prefill.pool,
            incarnation=self.life,
            layout=FAKE_LAYOUT,
            settings=SETTINGS,
            clock=self.loop.time,
        )

    @rule(prompt=st.sampled_from(PROMPTS), importer=IMPORTER_COMES, read=st.sampled_from([0, 4, 14]))
    def begin(self, prompt: tuple[int, ...], importer: str, read: int) -> None:
        """Begin a request, ``read`` tokens of whose prompt are read at once."""
        if self._under_way() >= MOST_LIVE:
            return
        self.serial += 1
        handover = Handover(RequestId(f"r{self.serial}"), Attempt(1), prompt)
        self._begin(handover, importer)
        if read and handover.reading is not None:
            self._compute(handover, read)

    @precondition(lambda self: self.handovers)
    @rule(pick=PICKS, importer=IMPORTER_COMES)
    def try_again(self, pick: int, importer: str) -> None:
        """Begin the next attempt; the one before may not know yet."""
        old = self._live(pick)
        newer = any(one.request_id == old.request_id and one.attempt > old.attempt for one in self.handovers)
        if newer or self._under_way() >= MOST_LIVE:
            return
        old.disturbed = True
        self._begin(Handover(old.request_id, Attempt(old.attempt + 1), old.prompt), importer)

    def _begin(self, handover: Handover, importer: str) -> None:
        self.handovers.append(handover)
        if importer == "first":
            self._start_import(handover)
        self._open(handover)
        if importer == "second":
            self._start_import(handover)
        if handover.export is None or handover.task is None:
            handover.disturbed = True

    def _open(self, handover: Handover) -> None:
        hold = RequestHold(handover.request_id, handover.attempt)
        reading = self.prefill.sequence(hold, handover.prompt)
        cached = reading.attach_cached(len(handover.prompt) - 1)
        try:
            reading.reserve(len(handover.prompt))
            export = self.loop.do(lambda: self.exporter.open(handover.request_id, handover.attempt))
        except (NoFreeBlocks, ExportGone):
            reading.give_back()
            return
        handover.reading, handover.export = reading, export
        self._offer(handover, cached)

    def _start_import(self, handover: Handover) -> None:
        hold = RequestHold(handover.request_id, handover.attempt)
        writing = self.decode.sequence(hold, handover.prompt)
        length = len(handover.prompt)
        writing.attach_cached(length)
        try:
            writing.reserve(length)
        except NoFreeBlocks:
            writing.give_back()
            handover.disturbed = True
            return
        handover.writing = writing
        job = import_job(handover, writing, self.life)

        def start() -> None:
            handover.channel.serve(self.exporter)
            handover.task = asyncio.get_running_loop().create_task(self.importer.run(job, handover.channel))
            handover.task.add_done_callback(lambda task: self._import_over(handover, task))

        self.loop.do(start)

    def _import_over(self, handover: Handover, task: "asyncio.Task[Imported]") -> None:
        writing = handover.writing
        assert writing is not None
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            assert error is None or isinstance(error, LegFailed), f"not an error of a leg: {error!r}"
            handover.channel.cancel()
        else:
            for position in range(len(handover.prompt)):
                slot = self.decode.memory.slot(writing.block_table, position).tobytes()
                assert slot == kv_of(handover.prompt, position), "wrong KV was accepted"
            writing.advance(writing.pending)
            handover.taken_over = True
        writing.give_back()

    @precondition(lambda self: any(one.reading is not None for one in self.handovers))
    @rule(pick=PICKS, count=st.integers(1, 14))
    def compute(self, pick: int, count: int) -> None:
        """Read the next chunk of a prompt; the last one finishes its export."""
        readers = [one for one in self.handovers if one.reading is not None]
        self._compute(readers[pick % len(readers)], count)

    def _compute(self, handover: Handover, count: int) -> None:
        reading, export = handover.reading, handover.export
        assert reading is not None
        assert export is not None
        count = min(count, reading.pending)
        for position in range(reading.computed, reading.computed + count):
            kv = np.frombuffer(kv_of(handover.prompt, position), dtype=np.uint8)
            self.prefill.memory.slot(reading.block_table, position)[:] = kv
        self._offer(handover, reading.advance(count))
        if reading.pending:
            return
        rest = len(handover.prompt) % SIZE
        if rest:
            last = len(reading.block_table) - 1
            tail = SealedBlock(position=last, index=reading.block_table[last], hash=None, tokens=rest)
            self.loop.do(lambda: export.seal([tail]))
        self.loop.do(lambda: export.finish(7))
        reading.give_back()
        handover.reading = None

    def _offer(self, handover: Handover, filled: list[FilledBlock]) -> None:
        export = handover.export
        assert export is not None
        blocks = [SealedBlock(position=one.position, index=one.index, hash=one.hash, tokens=SIZE) for one in filled]
        if blocks:
            self.loop.do(lambda: export.seal(blocks))

    @precondition(lambda self: any(one.channel.requests for one in self.handovers))
    @rule(pick=PICKS)
    def deliver_request(self, pick: int) -> None:
        channels = [one.channel for one in self.handovers if one.channel.requests]
        self.loop.do(channels[pick % len(channels)].deliver_request)

    @precondition(lambda self: any(one.channel.answers for one in self.handovers))
    @rule(pick=PICKS, again=st.booleans())
    def deliver_answer(self, pick: int, again: bool) -> None:
        channels = [one.channel for one in self.handovers if one.channel.answers]
        self.loop.do(lambda: channels[pick % len(channels)].deliver_answer(again=again))

    @precondition(lambda self: self.network.landings)
    @rule(pick=PICKS, halves=st.integers(1, 2))
    def land(self, pick: int, halves: int) -> None:
        landing = self.network.landings[pick % len(self.network.landings)]
        for _ in range(min(halves, 2 - landing.halves)):
            self.loop.do(lambda: self.network.land(landing))

    @rule(picks=st.lists(PICKS, min_size=3, max_size=15))
    def go_on(self, picks: list[int]) -> None:
        """Let some of what waits happen, whatever it is."""
        for pick in picks:
            moves: list[Callable[[int], None]] = []
            moves += [lambda pick: self.compute(pick, 4)] * any(one.reading is not None for one in self.handovers)
            moves += [self.deliver_request] * any(one.channel.requests for one in self.handovers)
            moves += [lambda pick: self.deliver_answer(pick, again=False)] * any(
                one.channel.answers for one in self.handovers
            )
            moves += [lambda pick: self.land(pick, 2)] * bool(self.network.landings)
            if moves:
                moves[pick % len(moves)](pick)

    @precondition(lambda self: self.network.landings)
    @rule(pick=PICKS, tear=st.booleans())
    def spoil_bytes(self, pick: int, tear: bool) -> None:
        """Tear a block, or let somebody else write in it before it is read."""
        if tear:
            self._tear(pick)
        else:
            self._lose_lease(pick)

    @precondition(lambda self: self._under_way())
    @rule(trouble=st.sampled_from(["cancel import", "fail prefill", "lose message", "lose message"]), pick=PICKS)
    def disturb(self, trouble: str, pick: int) -> None:
        """Let something go wrong with one hand-over."""
        if trouble == "cancel import":
            self._cancel_import(pick)
        elif trouble == "lose message":
            self._lose_message(pick)
        elif any(one.reading is not None for one in self.handovers):
            self._fail_prefill(pick)

    def _cancel_import(self, pick: int) -> None:
        handover = self._live(pick)
        if handover.task is not None:
            handover.disturbed = True
            self.loop.do(handover.task.cancel)

    def _fail_prefill(self, pick: int) -> None:
        readers = [one for one in self.handovers if one.reading is not None]
        handover = readers[pick % len(readers)]
        reading, export = handover.reading, handover.export
        assert reading is not None
        assert export is not None
        handover.disturbed = True
        self.loop.do(lambda: export.fail("the prefill was cancelled"))
        reading.give_back()
        handover.reading = None

    def _lose_message(self, pick: int) -> None:
        handover = self._live(pick)
        waiting = handover.channel.answers or handover.channel.requests
        if waiting and waiting[0] is not None:
            handover.disturbed = True
            waiting.popleft()

    def _tear(self, pick: int) -> None:
        """Let a message end after its first half, unnoticed."""
        landing = self.network.landings[pick % len(self.network.landings)]
        for handover in self.handovers:
            targets = handover.writing.block_table if handover.writing is not None else []
            if any(np.shares_memory(landing.receive.buffer, self.decode.memory.buffer(index)) for index in targets):
                handover.disturbed = True
        self.loop.do(lambda: self.network.land(landing, torn=True))

    def _lose_lease(self, pick: int) -> None:
        """Free an export's blocks too early, and let somebody else write in all that is free: a bug of somebody's."""
        handover = self._live(pick)
        if handover.reading is None and self.prefill.pool.release(handover.lease):
            self._disturb_all()
            self._take(self.prefill, self.prefill.pool.available())

    @rule(here=st.booleans(), count=st.integers(0, POOL_BLOCKS // 2))
    def others_take_or_give_back(self, here: bool, count: int) -> None:
        site = self.decode if here else self.prefill
        if count:
            self._take(site, count)
        elif site.strangers:
            site.give_back()

    def _take(self, site: Site, count: int) -> None:
        self.serial += 1
        site.take(RequestHold(RequestId(f"x{self.serial}"), Attempt(1)), count)

    @precondition(lambda self: self._under_way())
    @rule(silently=st.booleans(), spared=st.sampled_from([False, True, True]))
    def kill_exporter(self, silently: bool, spared: bool) -> None:
        """Let the exporter's process die; ``silently``: nobody is told."""
        if spared:
            return

        def kill() -> None:
            for handover in self.handovers:
                handover.disturbed = True
                handover.reading = None
                handover.export = None
                handover.channel.lose_exporter(silently=silently)
            self.network.lose_sender(self.transport.address)

        self.loop.do(kill)
        self._start_exporter()

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.02, 0.05, 1.5, 4.5]))
    def wait(self, seconds: float) -> None:
        if seconds > 1:
            self._disturb_all()
        self.loop.advance(seconds)
        self.loop.finish(self.exporter.sweep())
        for export in [one.export for one in self.handovers if one.export is not None and not one.export.over]:
            assert export.deadline is None or export.deadline > self.loop.time(), "a lease outlived its deadline"

    @precondition(lambda self: self._under_way())
    @rule(really=st.sampled_from([False, False, True]))
    def let_all_end(self, really: bool) -> None:
        """Let everything happen that waits; nothing else comes between."""
        if not really:
            return
        self._finish_prefills()
        self._deliver_everything()
        for handover in self.handovers:
            assert handover.disturbed or handover.taken_over, "an undisturbed hand-over did not succeed"

    @invariant()
    def nothing_lands_in_the_block_of_another(self) -> None:
        if hasattr(self, "loop"):
            self.decode.check_strangers()
            self.prefill.check_strangers()
            self.decode.pool.audit()
            self.prefill.pool.audit()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.let_all_end(really=True)
            self._let_all_time_pass()
            self._check_that_nothing_is_left()
        finally:
            self.loop.shut()

    def _finish_prefills(self) -> None:
        while any(one.reading is not None for one in self.handovers):
            self.compute(0, 14)

    def _deliver_everything(self) -> None:
        while True:
            if self.network.landings:
                self.land(0, 2)
            elif any(one.channel.requests for one in self.handovers):
                self.deliver_request(0)
            elif any(one.channel.answers for one in self.handovers):
                self.deliver_answer(0, again=False)
            else:
                return

    def _let_all_time_pass(self) -> None:
        for _ in range(3):
            self.loop.advance(LONGEST_S)
            self.loop.finish(self.exporter.sweep())
            self._deliver_everything()
        for handover in self.handovers:
            assert handover.task is None or handover.task.done(), "a hand-over did not end"

    def _check_that_nothing_is_left(self) -> None:
        for site in (self.decode, self.prefill):
            while site.strangers:
                site.give_back()
            kinds = (RequestHold, LeaseHold, WriterHold)
            left = [hold for n in range(POOL_BLOCKS) for hold in site.pool.holds(n) if isinstance(hold, kinds)]
            assert not left, f"somebody still holds blocks: {left}"
        assert self.importer.quarantined == 0
        assert self.exporter.orphaned == 0, "a lease outlived its export"

    def _under_way(self) -> int:
        return sum(one.task is not None and not one.task.done() for one in self.handovers)

    def _live(self, pick: int) -> Handover:
        live = [one for one in self.handovers if one.task is not None and not one.task.done()]
        return live[pick % len(live)] if live else self.handovers[pick % len(self.handovers)]

    def _disturb_all(self) -> None:
        for handover in self.handovers:
            handover.disturbed = handover.disturbed or not handover.taken_over
