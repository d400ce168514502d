"""Publishers, a directory and a follower against a model of what each life holds (failures I9, I10, I18).

Workers store and forget blocks, crash, are started again, and come back as zombies; the server falls silent, to all or
to one, loses answers, tells entries twice or out of order, trims its log, loses everything or goes back to an old
state. Whatever happens, the router never believes of a life what that life never held, and never returns to a life
whose successor it knows. Once all is calm, its index is exactly what the living
workers hold.
"""

from dataclasses import dataclass, field
from random import Random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from block_directory.follower import Follower
from block_directory.index import PrefixIndex
from block_directory.publisher import Publisher
from block_directory.settings import DirectorySettings
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.workers import WorkerRecord
from tests.block_directory.samples import Pool, block, record
from tests.machines.faulty_directory import FaultyDirectory
from tests.machines.jumping_loop import JumpingLoop

SETTINGS = DirectorySettings(
    lease_s=4.0,
    tail_wait_s=0.25,
    retry_min_s=0.05,
    retry_max_s=0.4,
    resync_spread_s=0.2,
    snapshot_pause_s=0.5,
    event_log_entries=6,
)
CALM_S = 20.0
"""Some leases, the grace and all pauses."""
BLOCKS = 6
WORKERS = st.sampled_from(["decode-0", "prefill-0"])
NUMBERS = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=4)


def _dice(seed: int) -> Random:
    return Random(seed)  # noqa: S311  # spreads retries, the same way every time


@dataclass(slots=True, eq=False)
class Life:
    """One life of a worker: ``ever`` is every block that it has held."""

    record: WorkerRecord
    pool: Pool
    publisher: Publisher
    ever: set[int] = field(default_factory=set)


class DirectoryMachine(RuleBasedStateMachine):
    """Real publishers and a real follower over a faulty server, in virtual time."""

    @initialize(numbers=NUMBERS)
    def start(self, numbers: list[int]) -> None:
        self.loop = JumpingLoop()
        self.directory = FaultyDirectory(SETTINGS, clock=self.loop.time)
        self.disk = self.directory.saved()
        self.lives: dict[Incarnation, Life] = {}
        self.current: dict[str, Life] = {}
        self.zombies: list[Life] = []
        self.index = PrefixIndex(clock=self.loop.time)
        self.told: list[WorkerRecord] = []
        self.known: dict[WorkerId, Incarnation] = {}
        self.succeeded: set[Incarnation] = set()
        """Lives whose successor the router has been told of."""
        self.went_back = False
        self.follower = Follower(self.directory, self.index, self._workers_told, SETTINGS, randomness=_dice(0))
        self.loop.finish(self.follower.start())
        for name in ("decode-0", "prefill-0"):
            self.start_worker(name, zombie=False)
            self.change(name, "store", numbers)
        self.loop.advance(1.0)

    def _workers_told(self, records: list[WorkerRecord]) -> None:
        for told in records:
            self.went_back = self.went_back or told.incarnation in self.succeeded
            before = self.known.get(told.worker_id)
            if before is not None and before != told.incarnation:
                self.succeeded.add(before)
            self.known[told.worker_id] = told.incarnation
        self.told = records

    @rule(name=WORKERS, zombie=st.booleans())
    def start_worker(self, name: str, zombie: bool) -> None:
        """Start a new life. The one before is dead, or is only paused and will speak again."""
        old = self.current.pop(name, None)
        if old is not None:
            self._pause(old)
            if zombie:
                self.zombies.append(old)
        pool, incarnation = Pool(), len(self.lives) + 1
        mine = record(name, incarnation)
        publisher = Publisher(
            self.directory, mine, pool.drain_events, pool.cached_hashes, SETTINGS, randomness=_dice(incarnation)
        )
        life = self.lives[mine.incarnation] = self.current[name] = Life(mine, pool, publisher)
        self.loop.finish(life.publisher.start())

    def _pause(self, life: Life) -> None:
        """Stop a worker as a signal does: it tells nobody."""
        task = life.publisher._task
        if task is not None:
            self.loop.do(task.cancel)

    @precondition(lambda self: self.zombies)
    @rule()
    def wake_zombie(self) -> None:
        zombie = self.zombies.pop(0)
        if not self._is_replaced(zombie):
            return
        zombie.pool.store(0, 1)
        zombie.ever |= {0, 1}
        zombie.publisher._in_step = True
        self.loop.finish(zombie.publisher.start())
        zombie.publisher.wake()
        self.loop.advance(0.1)
        self._pause(zombie)

    def _is_replaced(self, zombie: Life) -> bool:
        """Say whether the directory lists an old life's successor, and somebody remembers the old one.

        One that is alone may well come back. One that never heard of its own registration takes its successor's place
        once all have forgotten it.
        """
        life = zombie.record.incarnation
        listed = self.directory._live(zombie.record.worker_id)
        replaced = listed is not None and listed.incarnation != life
        until = max(
            self.directory._entered.get((zombie.record.worker_id, life), 0.0), self.follower._replaced.get(life, 0.0)
        )
        return replaced and (zombie.publisher._entered_once or until > self.loop.time() + 1.0)

    @rule(name=WORKERS, change=st.sampled_from(["store", "store", "remove", "clear"]), numbers=NUMBERS)
    def change(self, name: str, change: str, numbers: list[int]) -> None:
        """Let a worker's cache gain or lose blocks."""
        life = self.current.get(name)
        if life is None:
            return
        if change == "store":
            life.ever.update(numbers)
            life.pool.store(*numbers)
        elif change == "remove":
            life.pool.remove(*numbers)
        else:
            life.pool.clear()
        self.loop.do(life.publisher.wake)

    @rule(name=WORKERS, orderly=st.booleans())
    def end_worker(self, name: str, orderly: bool) -> None:
        life = self.current.pop(name, None)
        if life is not None and orderly:
            self.loop.finish(life.publisher.close())
        elif life is not None:
            self._pause(life)

    @rule(fault=st.sampled_from(["silent", "deaf_after", "doubled", "shuffled", "without_snapshots", "cut_off", ""]))
    def fail(self, fault: str) -> None:
        """Let a fault begin, or end them all."""
        if not fault:
            self.directory.heal()
        elif fault == "cut_off":
            self.directory.cut_off = WorkerId("decode-0")
        else:
            setattr(self.directory, fault, True)

    @rule(event=st.sampled_from(["lose everything", "save", "go back"]))
    def restart_server(self, event: str) -> None:
        """Lose what the server had, or go back to what it saved: then it may list a worker's last life again."""
        if event == "save":
            self.disk = self.directory.saved()
        elif event == "go back":
            self.directory.go_back_to(self.disk)
            self.disk = self.directory.saved()
        else:
            self.directory.lose_everything()
        self.loop.settle()

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @rule(really=st.sampled_from([False, False, True]))
    def calm(self, really: bool) -> None:
        """End all faults and give everybody time; then everything must be right."""
        if not really:
            return
        self.directory.heal()
        self.loop.advance(CALM_S)
        living = sorted(life.record.worker_id for life in self.current.values())
        assert [told.worker_id for told in self.told] == living
        assert {told.incarnation for told in self.told} == {life.record.incarnation for life in self.current.values()}
        for name, life in self.current.items():
            assert life.publisher.healthy
            held = {number for number in range(BLOCKS) if block(number) in life.pool.held}
            assert self._believed(WorkerId(name)) == held, "the index is not what the worker holds"

    @invariant()
    def nothing_is_believed_that_was_never_true(self) -> None:
        if not hasattr(self, "loop"):
            return
        for told in self.told:
            ever = self.lives[told.incarnation].ever
            assert self._believed(told.worker_id) <= ever, "the index believes what was never true"

    @invariant()
    def a_life_that_was_replaced_stays_so(self) -> None:
        if hasattr(self, "loop"):
            assert not self.went_back, "the router went back to a life that was replaced"

    def _believed(self, worker_id: WorkerId) -> set[int]:
        return {number for number in range(BLOCKS) if worker_id in self.index.longest_prefix([block(number)])}

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.calm(really=True)
        finally:
            self.loop.shut()
