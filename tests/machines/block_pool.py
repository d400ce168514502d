"""A pool and the sequences on it against a model of holds and contents (failures I1 to I3, I8, I11, I14).

The model says who must hold which block, and of each slot of memory whose token lies in it: the salt and all tokens up
to there. A sequence may read only what it would have written itself. Bytes from another worker land when the machine
says so, however long ago the request was aborted; a block that was given away too early is found by what lands in it.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster_core import hash_chain
from cluster_core.holds import CacheHold, Hold, LeaseHold, RequestHold, WriterHold
from cluster_core.identity import Attempt, RequestId
from inference_engine.block_pool import BlockPool, NoFreeBlocks
from inference_engine.sequence import TokenSequence

BLOCK = 4
SALTS = ("", "tenant-a")
MOST_LIVE = 8
PROMPTS = st.builds(
    lambda length, last: (*range(length - 1), last), length=st.integers(1, 18), last=st.sampled_from([3, 99])
)
PICKS = st.integers(0, 11)

Content = tuple[str, tuple[int, ...]]
"""The salt under which a token's KV was computed, and all tokens up to it."""


@dataclass(slots=True, eq=False)
class Request:
    """A live sequence. While ``landing`` is not empty its blocks are being filled from elsewhere."""

    sequence: TokenSequence
    hold: RequestHold
    salt: str
    landing: set[int] = field(default_factory=set)

    @property
    def importing(self) -> bool:
        return bool(self.landing)

    def content(self, position: int) -> Content:
        return self.salt, tuple(self.sequence.token_ids[: position + 1])


@dataclass(slots=True, eq=False)
class Write:
    """Bytes on their way into a block, whatever has become of the request."""

    hold: WriterHold
    index: int
    slots: dict[int, Content]
    request: Request
    position: int


class BlockPoolMachine(RuleBasedStateMachine):
    """Requests that compute, import, append, fork, are lent, are preempted and are aborted at any moment."""

    @initialize(total=st.integers(2, 14), window=st.sampled_from([0, 0, 6]))
    def start(self, total: int, window: int) -> None:
        self.total, self.window = total, window
        self.pool = BlockPool(total)
        self.serial = 0
        self.live: list[Request] = []
        self.preempted: list[Request] = []
        self.writes: list[Write] = []
        self.leases: dict[LeaseHold, list[int]] = {}
        self.memory: dict[int, dict[int, Content]] = defaultdict(dict)
        self.generations = [0] * total
        self.kept: dict[int, int] = {}
        """The generation of each block that had a hold after the last step: it may not change while one stays."""

    @rule(prompt=PROMPTS, salt=st.sampled_from(SALTS), imported=st.booleans())
    def begin(self, prompt: tuple[int, ...], salt: str, imported: bool) -> None:
        if len(self.live) + len(self.preempted) >= MOST_LIVE:
            return
        hold = self._request_hold()
        root = hash_chain.root_hash(b"model", salt)
        sequence = TokenSequence(
            pool=self.pool, hold=hold, root=root, token_ids=prompt, block_size_tokens=BLOCK, window_tokens=self.window
        )
        self._admit(Request(sequence, hold, salt), imported=imported)

    @precondition(lambda self: self.preempted)
    @rule(pick=PICKS)
    def resume(self, pick: int) -> None:
        self._admit(self.preempted.pop(pick % len(self.preempted)), imported=False)

    def _admit(self, request: Request, *, imported: bool) -> None:
        sequence = request.sequence
        length = len(sequence.token_ids)
        if imported:
            sequence.start_at_tail()
        sequence.attach_cached(length if imported else length - 1)
        try:
            sequence.reserve_ahead(length + 1)
        except NoFreeBlocks:
            sequence.give_back()
            return
        self.live.append(request)
        if imported:
            for position in range(sequence.computed // BLOCK, -(-length // BLOCK)):
                self._expect_bytes(request, position)
            if not request.importing:
                sequence.advance(sequence.pending)

    def _expect_bytes(self, request: Request, position: int) -> None:
        self.serial += 1
        hold = WriterHold(self.serial)
        index = request.sequence.block_table[position]
        self.pool.acquire(index, hold)
        tokens = range(position * BLOCK, min((position + 1) * BLOCK, len(request.sequence.token_ids)))
        slots = {place % BLOCK: request.content(place) for place in tokens}
        self.writes.append(Write(hold, index, slots, request, position))
        request.landing.add(position)

    @precondition(lambda self: self.writes)
    @rule(pick=PICKS)
    def land(self, pick: int) -> None:
        write = self.writes.pop(pick % len(self.writes))
        self.memory[write.index].update(write.slots)
        self.pool.release_block(write.index, write.hold)
        request = write.request
        if request in self.live and write.position in request.landing:
            request.landing.remove(write.position)
            if not request.importing:
                request.sequence.advance(request.sequence.pending)

    @precondition(lambda self: self.live)
    @rule(pick=PICKS, count=st.integers(1, 9))
    def compute(self, pick: int, count: int) -> None:
        request = self.live[pick % len(self.live)]
        sequence = request.sequence
        if request.importing or not sequence.pending:
            return
        sequence.attach_cached(len(sequence.token_ids) - 1)
        count = min(count, sequence.pending)
        try:
            sequence.reserve(sequence.computed + count)
        except NoFreeBlocks:
            return
        for position in range(sequence.computed, sequence.computed + count):
            index = sequence.block_table[position // BLOCK]
            self.memory[index][position % BLOCK] = request.content(position)
        sequence.advance(count)

    @precondition(lambda self: self.live)
    @rule(pick=PICKS, token=st.integers(3, 6))
    def append(self, pick: int, token: int) -> None:
        request = self.live[pick % len(self.live)]
        if not request.importing and not request.sequence.pending:
            request.sequence.append(token)

    @precondition(lambda self: self.live)
    @rule(pick=PICKS, ahead=st.integers(1, 9))
    def reserve_for_guesses_and_trim(self, pick: int, ahead: int) -> None:
        request = self.live[pick % len(self.live)]
        if request.importing:
            return
        before = list(request.sequence.block_table)
        try:
            request.sequence.reserve(len(request.sequence.token_ids) + ahead)
        except NoFreeBlocks:
            assert request.sequence.block_table == before, "a failed reservation changed something"
        request.sequence.trim()

    @precondition(lambda self: self.live)
    @rule(pick=PICKS)
    def fork(self, pick: int) -> None:
        request = self.live[pick % len(self.live)]
        if request.importing or request.sequence.pending or len(self.live) >= MOST_LIVE:
            return
        hold = self._request_hold()
        try:
            sequence, copy = request.sequence.fork(hold)
        except NoFreeBlocks:
            return
        if copy is not None:
            self.memory[copy[1]] = dict(self.memory[copy[0]])
        self.live.append(Request(sequence, hold, request.salt))

    @precondition(lambda self: self.live)
    @rule(pick=PICKS)
    def lend(self, pick: int) -> None:
        sequence = self.live[pick % len(self.live)].sequence
        full = sequence.block_table[sequence.dropped : sequence.computed // BLOCK]
        if full:
            self.serial += 1
            lease = LeaseHold(RequestId(f"r{self.serial}"), Attempt(1))
            for index in full:
                self.pool.acquire(index, lease)
            self.leases[lease] = full

    @precondition(lambda self: self.leases)
    @rule(pick=PICKS)
    def end_lease(self, pick: int) -> None:
        lease = list(self.leases)[pick % len(self.leases)]
        assert self.pool.release(lease) == len(self.leases.pop(lease))

    @precondition(lambda self: self.live)
    @rule(pick=PICKS)
    def abort(self, pick: int) -> None:
        request = self.live.pop(pick % len(self.live))
        request.sequence.give_back()
        assert self.pool.release(request.hold) == 0, "an end gives back everything"

    @precondition(lambda self: self.live)
    @rule(pick=PICKS)
    def preempt(self, pick: int) -> None:
        request = self.live[pick % len(self.live)]
        if not request.importing:
            self.live.remove(request)
            request.sequence.give_back()
            self.preempted.append(request)

    @precondition(lambda self: self.live)
    @rule(pick=PICKS)
    def crash_owner(self, pick: int) -> None:
        """Forget a request without a word to its sequence: the pool alone gives back what the hold has."""
        request = self.live.pop(pick % len(self.live))
        held = request.sequence.block_table[request.sequence.dropped :]
        assert self.pool.release(request.hold) == len(held)

    @invariant()
    def holds_are_those_of_the_model(self) -> None:
        owners: dict[int, set[Hold]] = {index: set() for index in range(self.total)}
        for request in self.live:
            for index in request.sequence.block_table[request.sequence.dropped :]:
                owners[index].add(request.hold)
        for write in self.writes:
            owners[write.index].add(write.hold)
        for lease, indices in self.leases.items():
            for index in indices:
                owners[index].add(lease)
        for index, expected in owners.items():
            assert self.pool.holds(index) - {CacheHold()} == expected, "a hold is missing, or one too many"
        counts = self.pool.counts()
        assert counts.held == sum(bool(expected) for expected in owners.values())
        assert counts.held + self.pool.available() == counts.total == self.total
        self.pool.audit()

    @invariant()
    def what_is_held_is_given_to_nobody_else(self) -> None:
        held = {index for index in range(self.total) if self.pool.holds(index) - {CacheHold()}}
        for index in range(self.total):
            generation = self.pool.generation(index)
            assert generation >= self.generations[index], "generations only grow"
            self.generations[index] = generation
        for write in self.writes:
            generation = self.pool.generation(write.index)
            assert self.kept.get(write.index, generation) == generation, "a block was given away under a writer"
        self.kept = {index: self.pool.generation(index) for index in held}

    @invariant()
    def a_sequence_reads_what_it_would_have_written(self) -> None:
        for request in self.live:
            sequence = request.sequence
            for position in range(sequence.dropped * BLOCK, sequence.computed):
                index = sequence.block_table[position // BLOCK]
                found = self.memory[index].get(position % BLOCK)
                assert found == request.content(position), "a sequence reads what it would not have written"

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        while self.writes:
            self.land(0)
        while self.leases:
            self.end_lease(0)
        while self.live:
            self.abort(0)
        assert self.pool.counts().held == 0

    def _request_hold(self) -> RequestHold:
        self.serial += 1
        return RequestHold(RequestId(f"r{self.serial}"), Attempt(1))
