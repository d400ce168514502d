"""A router's side of the directory, over each implementation."""

from collections.abc import AsyncIterator, Container
from dataclasses import replace

import pytest

from block_directory import follower
from block_directory.directory import BlockDirectory, Cursor, LogPage
from block_directory.follower import Follower
from block_directory.index import PrefixIndex
from block_directory.memory_directory import MemoryDirectory
from block_directory.settings import DirectorySettings
from cluster_core.errors import PartUnavailable
from cluster_core.identity import Incarnation
from cluster_core.workers import WorkerRecord
from tests.block_directory.samples import LEASE_S, blocks, eventually, quick_settings, record, removed, stored


class Router:
    """A follower with its index and the list of workers it was told."""

    def __init__(
        self, directory: BlockDirectory, settings: DirectorySettings, heard: Container[Incarnation] = ()
    ) -> None:
        self.index = PrefixIndex()
        self.told: list[list[WorkerRecord]] = []
        self.follower = Follower(directory, self.index, self.told.append, settings, is_heard=lambda life: life in heard)

    def workers(self) -> list[WorkerRecord]:
        return self.told[-1] if self.told else []

    def holds(self, *numbers: int) -> dict[str, int]:
        return {str(worker): length for worker, length in self.index.longest_prefix(blocks(*numbers)).items()}


@pytest.fixture
async def router(directory: BlockDirectory, settings: DirectorySettings) -> AsyncIterator[Router]:
    made = Router(directory, settings)
    yield made
    await made.follower.close()


async def enter(directory: BlockDirectory, mine: WorkerRecord, *numbers: int) -> None:
    await directory.register(mine, LEASE_S)
    await directory.store_snapshot(mine.worker_id, mine.incarnation, 1, blocks(*numbers))


async def test_what_was_there_before_and_what_comes_after_is_known(directory: BlockDirectory, router: Router) -> None:
    first, second = record("decode-0"), record("decode-1")
    await enter(directory, first, 1, 2)
    await router.follower.start()
    await eventually(lambda: router.holds(1, 2) == {"decode-0": 2})
    assert router.workers() == [first]
    await eventually(lambda: not router.follower.degraded)
    await enter(directory, second, 1)
    await directory.publish(second.worker_id, second.incarnation, 2, [stored(2, 3), removed(3)])
    await directory.publish(first.worker_id, first.incarnation, 2, [removed(2)])
    await eventually(lambda: router.holds(1, 2, 3) == {"decode-0": 1, "decode-1": 2})
    assert router.workers() == [first, second]


async def test_a_worker_that_leaves_is_forgotten(directory: BlockDirectory, router: Router) -> None:
    mine = record()
    await enter(directory, mine, 1)
    await router.follower.start()
    await eventually(lambda: router.holds(1) != {})
    await directory.unregister(mine.worker_id, mine.incarnation)
    await eventually(lambda: router.holds(1) == {} and router.workers() == [])
    assert len(router.told) == 2


async def test_a_worker_whose_lease_ends_is_forgotten(directory: BlockDirectory, router: Router) -> None:
    gone, stays = record("decode-0"), record("decode-1")
    await enter(directory, stays, 1)
    await router.follower.start()
    await directory.register(gone, 0.05)
    await eventually(lambda: len(router.workers()) == 2)
    await eventually(lambda: router.workers() == [stays])


async def test_the_last_worker_whose_lease_ends_is_forgotten_after_the_grace(
    directory: BlockDirectory, router: Router
) -> None:
    await router.follower.start()
    await directory.register(record(), 0.1)
    await eventually(lambda: len(router.workers()) == 1)
    await eventually(lambda: router.workers() == [])


async def test_a_new_life_takes_the_old_ones_place(directory: BlockDirectory, router: Router) -> None:
    old, new = record("decode-0"), record("decode-0")
    await enter(directory, old, 1, 2)
    await router.follower.start()
    await eventually(lambda: router.holds(1) == {"decode-0": 1})
    await enter(directory, new, 3)
    await eventually(lambda: router.holds(3) == {"decode-0": 1})
    assert router.workers() == [new]
    assert router.holds(1) == {}
    await directory.publish(old.worker_id, old.incarnation, 2, [stored(4)])
    await directory.publish(new.worker_id, new.incarnation, 2, [stored(5)])
    await eventually(lambda: router.holds(5) != {})
    assert router.holds(4) == {}


async def test_a_life_that_is_heard_was_not_replaced_whatever_old_data_says() -> None:
    settings = quick_settings(lease_s=LEASE_S)
    directory, dead, living = MemoryDirectory(settings), record("decode-0"), record("decode-0")
    router = Router(directory, settings, heard={living.incarnation})
    await enter(directory, dead, 1)
    old_data = directory.saved()
    await enter(directory, living, 2)
    await router.follower.start()
    await eventually(lambda: router.workers() == [living])
    directory.go_back_to(old_data)
    await directory.register(dead, LEASE_S)  # only for the follower to look now
    await eventually(lambda: router.workers() == [dead])
    await directory.unregister(dead.worker_id, dead.incarnation)
    await enter(directory, living, 2, 3)
    await eventually(lambda: router.workers() == [living] and router.holds(2, 3) == {"decode-0": 2})
    await router.follower.close()


async def test_a_life_that_holds_its_place_was_not_replaced_although_nobody_hears_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follower, "REMEMBERED_LEASES", 1e6)
    settings = quick_settings(lease_s=0.05)
    directory, dead, living = MemoryDirectory(settings), record("decode-0"), record("decode-0")
    router = Router(directory, settings)
    await enter(directory, living, 2)
    present = directory.saved()
    await router.follower.start()
    await eventually(lambda: router.workers() == [living])
    await enter(directory, dead, 1)  # stands for what a server with old data says
    await eventually(lambda: router.workers() == [dead])
    directory.go_back_to(present)
    await eventually(lambda: router.workers() == [living] and router.holds(2) == {"decode-0": 1})
    await router.follower.close()


async def test_events_that_the_log_has_dropped_are_made_up_by_one_snapshot() -> None:
    settings = replace(quick_settings(), event_log_entries=3, snapshot_pause_s=30.0)
    directory = MemoryDirectory(settings)
    router = Router(directory, settings)
    mine = record()
    await enter(directory, mine, 0)
    await router.follower.start()
    await eventually(lambda: router.holds(0) != {})
    await directory.publish(mine.worker_id, mine.incarnation, 2, [stored(number) for number in range(1, 20)])
    router.follower._not_before.clear()
    await eventually(lambda: router.holds(*range(20)) == {"decode-0": 20})
    assert router.follower.snapshots_taken == 2
    await router.follower.close()


async def test_a_trimmed_log_is_noticed_without_a_further_event() -> None:
    settings = quick_settings()
    directory = MemoryDirectory(settings)
    router = Router(directory, settings)
    mine = record()
    await enter(directory, mine, 0)
    await router.follower.start()
    await eventually(lambda: router.holds(0) != {})
    await directory.publish(mine.worker_id, mine.incarnation, 2, [stored(1)])
    directory._log.clear()
    await eventually(lambda: router.holds(0, 1) == {"decode-0": 2})
    await router.follower.close()


class Mute(MemoryDirectory):
    """Does not answer while `silent` is set."""

    silent = False

    async def epoch(self) -> str:
        if self.silent:
            message = "silent"
            raise PartUnavailable(message)
        return await super().epoch()

    async def tail(self, cursor: Cursor | None, wait_s: float) -> LogPage:
        if self.silent:
            message = "silent"
            raise PartUnavailable(message)
        return await super().tail(cursor, wait_s)


async def test_silence_changes_nothing_but_degraded() -> None:
    settings = quick_settings()
    directory = Mute(settings)
    router = Router(directory, settings)
    mine = record()
    await enter(directory, mine, 1)
    await router.follower.start()
    await eventually(lambda: router.holds(1) != {})
    directory.silent = True
    await eventually(lambda: router.follower.failures >= 5)
    assert router.follower.degraded
    assert router.workers() == [mine]
    assert router.holds(1) == {"decode-0": 1}
    directory.silent = False
    await eventually(lambda: not router.follower.degraded)
    assert len(router.told) == 1
    await router.follower.close()


class Listless(MemoryDirectory):
    """Has no list of workers while `mislaid` is set."""

    mislaid = False

    async def workers(self) -> list[WorkerRecord]:
        if self.mislaid:
            message = "mislaid"
            raise PartUnavailable(message)
        return await super().workers()


async def test_a_change_heard_of_before_an_outage_is_no_leave_after_it() -> None:
    settings = quick_settings(lease_s=30.0)
    directory = Listless(settings)
    router = Router(directory, settings)
    mine = record()
    await enter(directory, mine, 1)
    await router.follower.start()
    await eventually(lambda: router.holds(1) != {})
    directory.mislaid = True
    await enter(directory, mine, 1)
    await eventually(lambda: router.follower.failures >= 1)
    directory.lose_everything()
    directory.mislaid = False
    await eventually(lambda: not router.follower.degraded)
    assert router.workers() == [mine]
    await router.follower.close()


async def test_lost_data_is_not_lost_workers_until_the_grace_is_over() -> None:
    settings = quick_settings()
    directory = MemoryDirectory(settings)
    router = Router(directory, settings)
    stays, dies = record("decode-0"), record("decode-1")
    await enter(directory, stays, 1)
    await enter(directory, dies, 1)
    await router.follower.start()
    await eventually(lambda: len(router.holds(1)) == 2)
    directory.lose_everything()
    await directory.register(stays, LEASE_S)
    await directory.store_snapshot(stays.worker_id, stays.incarnation, 8, blocks(1, 2))
    await eventually(lambda: router.holds(1, 2).get("decode-0") == 2)
    assert len(router.told) == 1
    await eventually(lambda: router.workers() == [stays])
    assert router.holds(1, 2) == {"decode-0": 2}
    await router.follower.close()
