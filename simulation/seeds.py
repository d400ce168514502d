"""Runs many seeds, on one core or on several: each seed is a history of its own, so cores share nothing.

Further cores are processes of the same program. Each has a pipe of its own to the first process, which gives it one
batch after the other; it ends when the pipe does, so that none outlives its owner.
"""

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from simulation.run import Outcome, run_scenario, undisturbed
from simulation.scenario import draw_scenario

BATCH = 50
"""Seeds that are run in one go. Garbage is collected between two batches: none is within a run."""
REPEAT_EVERY = 100
"""Every such seed runs twice, and both histories must be the same."""


@dataclass(slots=True)
class Totals:
    """What some runs amount to."""

    seeds: int = 0
    requests: int = 0
    succeeded: int = 0
    disturbed_blocks: int = 0
    fetched_blocks: int = 0
    virtual_s: float = 0.0
    repeated: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Seeds in which an invariant broke, and the first thing that was wrong."""

    def add(self, other: "Totals") -> None:
        """Count other runs too."""
        self.seeds += other.seeds
        self.requests += other.requests
        self.succeeded += other.succeeded
        self.disturbed_blocks += other.disturbed_blocks
        self.fetched_blocks += other.fetched_blocks
        self.virtual_s += other.virtual_s
        self.repeated += other.repeated
        self.failures += other.failures


def run_seeds(first: int, count: int) -> Totals:
    """Run ``count`` seeds from ``first`` on, here."""
    totals = Totals()
    with undisturbed():
        for seed in range(first, first + count):
            _count(seed, totals)
    gc.collect()
    return totals


def _count(seed: int, totals: Totals) -> None:
    outcome = _checked(seed, totals)
    totals.seeds += 1
    totals.requests += outcome.requests
    totals.succeeded += outcome.succeeded
    totals.disturbed_blocks += outcome.disturbed_blocks
    totals.fetched_blocks += outcome.fetched_blocks
    totals.virtual_s += outcome.virtual_s
    if outcome.violations:
        totals.failures.append((seed, outcome.violations[0]))


def run_until(enough: Callable[[Totals], bool], next_batch: Iterator[tuple[int, int]], jobs: int) -> Iterator[Totals]:
    """Run batches (first seed, count) until there are ``enough`` runs or no more batches; yield each one's totals."""
    so_far = Totals()
    if jobs == 1:
        for first, count in next_batch:
            if enough(so_far):
                return
            totals = run_seeds(first, count)
            so_far.add(totals)
            yield totals
        return
    with _workers(jobs) as pipes:
        busy = [pipe for pipe in pipes if _give(pipe, next_batch)]
        while busy:
            for pipe in wait(busy):
                assert isinstance(pipe, Connection)
                totals = pipe.recv()
                so_far.add(totals)
                yield totals
                if enough(so_far) or not _give(pipe, next_batch):
                    busy.remove(pipe)


def _give(pipe: Connection, batches: Iterator[tuple[int, int]]) -> bool:
    """Send the next batch, if there is one."""
    batch = next(batches, None)
    if batch is not None:
        pipe.send(batch)
    return batch is not None


@contextmanager
def _workers(jobs: int) -> Iterator[list[Connection]]:
    """Start processes that run batches; yields the pipe to each."""
    spawn = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(jobs)]
    processes = [spawn.Process(target=_serve, args=(theirs,), daemon=True) for _, theirs in pairs]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()
    try:
        yield [ours for ours, _ in pairs]
    finally:
        for ours, _ in pairs:
            ours.close()
        for process in processes:
            process.join()


def _serve(pipe: Connection) -> None:
    """Run batches until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and closes the pipe
    keep_what_is_loaded()
    try:
        while True:
            first, count = pipe.recv()
            pipe.send(run_seeds(first, count))
    except (EOFError, OSError):
        return


def keep_what_is_loaded() -> None:
    """Let later collections of garbage pass over all that exists now."""
    gc.collect()
    gc.freeze()


def _checked(seed: int, totals: Totals) -> Outcome:
    """Run a seed; now and then twice, to see that it is one history."""
    outcome = run_scenario(draw_scenario(seed))
    if seed % REPEAT_EVERY or outcome.violations:
        return outcome
    totals.repeated += 1
    again = run_scenario(draw_scenario(seed))
    if again.history.fingerprint() == outcome.history.fingerprint():
        return outcome
    return outcome.with_violation("the same seed gave another history")
