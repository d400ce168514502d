"""The prefix index against a plain dictionary, and its bounds."""

import time
from collections.abc import Sequence

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from block_directory.index import PrefixIndex
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from tests.block_directory.samples import block, blocks

ONE, TWO = WorkerId("decode-0"), WorkerId("decode-1")


def test_each_worker_counts_its_leading_blocks() -> None:
    index = PrefixIndex()
    index.stored(ONE, Incarnation(1), blocks(1, 2, 3))
    index.stored(TWO, Incarnation(2), blocks(1, 3, 4))
    index.stored(WorkerId("prefill-0"), Incarnation(3), blocks(2, 3, 4))
    assert index.longest_prefix(blocks(1, 2, 3, 4)) == {ONE: 3, TWO: 1}
    assert index.longest_prefix(()) == {}
    assert index.longest_prefix(blocks(9)) == {}


def test_a_dropped_life_is_gone_at_once_and_its_late_events_do_nothing() -> None:
    index = PrefixIndex()
    index.stored(ONE, Incarnation(1), blocks(*range(10_000)))
    index.drop(Incarnation(1))
    assert index.longest_prefix(blocks(0)) == {}
    index.stored(ONE, Incarnation(1), blocks(0))
    assert index.longest_prefix(blocks(0)) == {}
    assert index.wipe(100_000) == 0
    index.stored(ONE, Incarnation(2), blocks(5))
    assert index.longest_prefix(blocks(5)) == {ONE: 1}


def test_a_new_life_ends_the_old_one() -> None:
    index = PrefixIndex()
    index.stored(ONE, Incarnation(1), blocks(1, 2))
    index.begin(ONE, Incarnation(2))
    assert index.longest_prefix(blocks(1)) == {}
    index.stored(ONE, Incarnation(1), blocks(1))
    index.stored(ONE, Incarnation(2), blocks(2))
    assert index.longest_prefix(blocks(2)) == {ONE: 1}
    assert index.held_blocks(ONE) == 1


def test_a_life_cannot_speak_for_another_worker() -> None:
    index = PrefixIndex()
    index.stored(ONE, Incarnation(1), blocks(1))
    index.stored(TWO, Incarnation(1), blocks(2))
    assert index.longest_prefix(blocks(2)) == {}


def test_what_is_only_predicted_can_be_left_out() -> None:
    index = PrefixIndex()
    index.stored(ONE, Incarnation(1), blocks(1, 2))
    index.stored(TWO, Incarnation(2), blocks(1))
    index.predict(ONE, blocks(1, 2, 3), 60.0)
    index.predict(TWO, blocks(1, 2, 3), 60.0)
    assert index.longest_prefix(blocks(1, 2, 3)) == {ONE: 3, TWO: 3}
    assert index.longest_prefix(blocks(1, 2, 3), predicted_too=False) == {ONE: 2, TWO: 1}


def test_predictions_stand_in_until_their_time_is_up() -> None:
    now = 0.0
    index = PrefixIndex(clock=lambda: now)
    index.predict(ONE, blocks(1), 5.0)
    index.begin(ONE, Incarnation(1))
    index.predict(ONE, blocks(1, 2), 5.0)
    assert index.longest_prefix(blocks(1, 2, 3)) == {ONE: 2}
    now = 3.0
    index.predict(ONE, blocks(1), 5.0)
    now = 5.0
    assert index.longest_prefix(blocks(1, 2)) == {ONE: 1}
    now = 8.0
    assert index.longest_prefix(blocks(1, 2)) == {}


def test_an_event_settles_a_prediction() -> None:
    now = 0.0
    index = PrefixIndex(clock=lambda: now)
    index.begin(ONE, Incarnation(1))
    index.predict(ONE, blocks(1, 2, 3), 5.0)
    index.stored(ONE, Incarnation(1), blocks(1))
    index.removed(ONE, Incarnation(1), blocks(2))
    assert index.longest_prefix(blocks(1, 2)) == {ONE: 1}
    now = 6.0
    assert index.longest_prefix(blocks(1)) == {ONE: 1}
    assert index.longest_prefix(blocks(3)) == {}


def test_memory_is_bounded() -> None:
    index = PrefixIndex(max_blocks=100)
    index.stored(ONE, Incarnation(1), blocks(*range(150)))
    assert (index.held_blocks(ONE), index.refused_blocks) == (100, 50)
    index.drop(Incarnation(1))
    index.stored(TWO, Incarnation(2), blocks(*range(100)))
    assert index.held_blocks(TWO) == 100


def test_many_restarts_do_not_widen_the_index() -> None:
    index = PrefixIndex()
    for life in range(1, 2000):
        index.stored(ONE, Incarnation(life), blocks(*range(life, life + 50)))
    index.wipe(1_000_000)
    index.stored(TWO, Incarnation(5000), blocks(7))
    assert index.longest_prefix(blocks(7)) == {TWO: 1}
    assert index._bits_made < 64
    assert len(index._holders) == 51


def test_a_look_up_is_far_below_a_millisecond() -> None:
    index = PrefixIndex()
    for worker in range(10):
        numbers = range(200 + worker * 10_000, 200 + (worker + 1) * 10_000)
        index.stored(WorkerId(f"decode-{worker}"), Incarnation(worker + 1), blocks(*range(200), *numbers))
    prompt = blocks(*range(200))

    def look_up_s() -> float:
        started = time.perf_counter()
        assert len(index.longest_prefix(prompt)) == 10
        return time.perf_counter() - started

    assert min(look_up_s() for _ in range(50)) < 0.0005


class IndexMachine(RuleBasedStateMachine):
    """Compares with a dictionary of what each worker's current life holds and is believed to hold."""

    workers = st.sampled_from([WorkerId(f"w{number}") for number in range(3)])
    some_blocks = st.lists(st.integers(0, 7).map(block), max_size=6)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lives = 0
        self.index = PrefixIndex(clock=lambda: self.now)
        self.life: dict[WorkerId, Incarnation] = {}
        self.old: list[tuple[WorkerId, Incarnation]] = []
        self.held: dict[WorkerId, set[BlockHash]] = {}
        self.believed: dict[WorkerId, dict[BlockHash, float]] = {}

    @rule(worker=workers)
    def restart(self, worker: WorkerId) -> None:
        if worker in self.life:
            self.old.append((worker, self.life[worker]))
        self.lives += 1
        self.life[worker] = Incarnation(self.lives)
        self.held[worker], self.believed[worker] = set(), {}
        self.index.begin(worker, self.life[worker])

    @rule(worker=workers, hashes=some_blocks)
    def store(self, worker: WorkerId, hashes: list[BlockHash]) -> None:
        if worker in self.life:
            self.index.stored(worker, self.life[worker], hashes)
            self.held[worker].update(hashes)
            for each in hashes:
                self.believed[worker].pop(each, None)

    @rule(worker=workers, hashes=some_blocks)
    def remove(self, worker: WorkerId, hashes: list[BlockHash]) -> None:
        if worker in self.life:
            self.index.removed(worker, self.life[worker], hashes)
            self.held[worker].difference_update(hashes)
            for each in hashes:
                self.believed[worker].pop(each, None)

    @rule(worker=workers)
    def clear(self, worker: WorkerId) -> None:
        if worker in self.life:
            self.index.cleared(worker, self.life[worker])
            self.held[worker], self.believed[worker] = set(), {}

    @rule(worker=workers)
    def drop(self, worker: WorkerId) -> None:
        if worker in self.life:
            self.old.append((worker, self.life[worker]))
            self.index.drop(self.life.pop(worker))
            del self.held[worker], self.believed[worker]

    @rule(data=st.data(), hashes=some_blocks)
    def speak_after_the_end(self, data: st.DataObject, hashes: list[BlockHash]) -> None:
        if self.old:
            worker, life = data.draw(st.sampled_from(self.old))
            self.index.stored(worker, life, hashes)
            self.index.cleared(worker, life)

    @rule(worker=workers, hashes=some_blocks, ttl_s=st.integers(1, 5))
    def predict(self, worker: WorkerId, hashes: list[BlockHash], ttl_s: int) -> None:
        self.index.predict(worker, hashes, float(ttl_s))
        if worker in self.life:
            for each in hashes:
                if each not in self.held[worker]:
                    until = self.now + ttl_s
                    self.believed[worker][each] = max(until, self.believed[worker].get(each, until))

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(limit=st.integers(0, 5))
    def wipe(self, limit: int) -> None:
        self.index.wipe(limit)

    @rule(prompt=some_blocks)
    def look_up(self, prompt: Sequence[BlockHash]) -> None:
        assert self.index.longest_prefix(prompt) == {
            worker: length for worker in self.life if (length := self._length(worker, prompt))
        }

    @invariant()
    def counts_agree(self) -> None:
        for worker in self.life:
            assert self.index.held_blocks(worker) == len(self.held[worker])

    def teardown(self) -> None:
        for life in list(self.life.values()):
            self.index.drop(life)
        self.index.wipe(10_000)
        assert not self.index._holders
        assert not self.index._predicted
        assert self.index._entries == 0

    def _length(self, worker: WorkerId, prompt: Sequence[BlockHash]) -> int:
        length = 0
        for each in prompt:
            if each not in self.held[worker] and self.believed[worker].get(each, 0.0) <= self.now:
                break
            length += 1
        return length


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = hypothesis_settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_life_that_is_listed_again_is_believed_again() -> None:
    index = PrefixIndex()
    index.stored(ONE, Incarnation(1), blocks(1))
    index.drop(Incarnation(1))
    index.stored(ONE, Incarnation(1), blocks(1))
    assert index.longest_prefix(blocks(1)) == {}
    index.begin(ONE, Incarnation(1))
    index.stored(ONE, Incarnation(1), blocks(2))
    assert index.longest_prefix(blocks(1)) == {}
    assert index.longest_prefix(blocks(2)) == {ONE: 1}
