"""However a log is cut, doubled and shuffled, a replica ends where the worker is."""

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from block_directory.directory import LogEntry, Snapshot, SnapshotStored, WorkersChanged
from block_directory.index import PrefixIndex
from block_directory.replica import Replica
from cluster_core.blocks import BlockEvent, BlocksRemoved, BlocksStored, CacheCleared
from cluster_core.identity import BlockHash, Incarnation, WorkerId
from tests.block_directory.samples import block, blocks, removed, stored

WORKER, LIFE = WorkerId("decode-0"), Incarnation(9)


def entry(sequence: int, event: BlockEvent | SnapshotStored | WorkersChanged, life: int = LIFE) -> LogEntry:
    return LogEntry(worker_id=WORKER, incarnation=Incarnation(life), sequence=sequence, event=event)


def in_step(sequence: int, *numbers: int) -> tuple[Replica, PrefixIndex]:
    index = PrefixIndex()
    replica = Replica(index)
    replica.admit(WORKER, LIFE)
    replica.restore(WORKER, LIFE, Snapshot(sequence=sequence, hashes=blocks(*numbers)))
    return replica, index


def test_a_gap_asks_for_a_snapshot_once() -> None:
    replica, index = in_step(4)
    assert not replica.apply(entry(6, stored(1)))
    assert replica.apply(entry(7, stored(2)))
    assert index.longest_prefix(blocks(1)) == {}
    replica.restore(WORKER, LIFE, Snapshot(sequence=7, hashes=blocks(1, 2)))
    assert replica.apply(entry(8, removed(2)))
    assert index.longest_prefix(blocks(1, 2)) == {WORKER: 1}


def test_old_and_double_events_change_nothing() -> None:
    replica, index = in_step(4, 1)
    assert replica.apply(entry(3, removed(1)))
    assert replica.apply(entry(4, CacheCleared()))
    assert replica.apply(entry(2, SnapshotStored()))
    assert index.longest_prefix(blocks(1)) == {WORKER: 1}


def test_a_stored_snapshot_asks_to_be_read() -> None:
    replica, _ = in_step(4, 1)
    assert not replica.apply(entry(5, SnapshotStored()))


def test_lives_that_are_not_followed_are_passed_over() -> None:
    replica, index = in_step(4, 1)
    assert replica.apply(entry(1, stored(2), life=10))
    assert replica.apply(entry(1, SnapshotStored(), life=10))
    replica.drop(LIFE)
    replica.restore(WORKER, LIFE, Snapshot(sequence=9, hashes=blocks(1)))
    assert replica.apply(entry(10, stored(2)))
    assert index.longest_prefix(blocks(1)) == {}
    assert not replica.follows(LIFE)


def test_numbers_of_the_directory_show_what_was_missed() -> None:
    replica, _ = in_step(4, 1)
    assert replica.lagging({LIFE: 4, Incarnation(50): 9}) == []
    assert replica.lagging({LIFE: 5}) == [LIFE]


@st.composite
def tellings(draw: st.DrawFn) -> tuple[list[BlockEvent], list[int]]:
    """Events of a worker, and the order in which their numbers reach a replica: lost, doubled, out of order."""
    numbers = st.lists(st.integers(0, 5).map(block), max_size=3).map(tuple)
    event = st.one_of(
        st.builds(BlocksStored, hashes=numbers), st.builds(BlocksRemoved, hashes=numbers), st.just(CacheCleared())
    )
    events = draw(st.lists(event, min_size=1, max_size=12))
    order = draw(st.lists(st.integers(1, len(events)), max_size=20))
    return events, order


@given(telling=tellings())
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_order_the_end_is_right(telling: tuple[list[BlockEvent], list[int]]) -> None:
    events, order = telling
    states: list[set[BlockHash]] = [set()]
    for event in events:
        held = set(states[-1])
        match event:
            case BlocksStored(hashes=hashes):
                held.update(hashes)
            case BlocksRemoved(hashes=hashes):
                held.difference_update(hashes)
            case CacheCleared():
                held.clear()
        states.append(held)
    replica, index = in_step(0)
    written = 0
    for number in [*order, *range(1, len(events) + 1)]:
        written = max(written, number)
        if not replica.apply(entry(number, events[number - 1])):
            replica.restore(WORKER, LIFE, Snapshot(sequence=written, hashes=tuple(states[written])))
    for number in range(6):
        expected = {WORKER: 1} if block(number) in states[-1] else {}
        assert index.longest_prefix([block(number)]) == expected
