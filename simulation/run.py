"""Runs one scenario from start to rest.

The real router, schedulers, sessions, publishers and follower run, with their real services and messages, on one
virtual event loop (`simulation.virtual_loop`). Only what would do I/O is replaced: sockets (`simulation.calls` over
`simulation.network`), the transport (`simulation.block_moves`), the directory's server, the engine and its thread
(`simulation.hash_engine`). So one seed is one history, and time costs nothing.

Life of a run: the cluster starts; requests and faults come at their times; when the last fault is over everything
heals; the requests that are left end; one more request must succeed; and when nothing has been left to do for a while,
nothing may be left: no hold, no lease, no task, no entry that is not so.
"""

import asyncio
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from simulation.cluster import Cluster
from simulation.faults import FaultPlan
from simulation.history import History
from simulation.invariants import all_ready, check_now, left_at_rest, misbelieved
from simulation.quick_values import quick_values
from simulation.scenario import RequestPlan, Scenario
from simulation.virtual_loop import Livelock

REQUESTS_END_S = 30.0
"""How long after the last fault the last request may end."""
RECOVERY_S = 1.4
"""After the last fault: how long until the cluster must serve again."""
REST_S = 1.6
"""After the last request: longer than every lease and grace."""
BELIEFS_S = 2.6
"""After it, too: a directory with old data lists a dead life for a lease, and the living one registers after that."""
LOOKS_EVERY_S = 0.1
AUDITS_EVERY_S = 0.1
EXPECTED_LOGS = ("an engine step failed", "the engine failed")
_LISTED: Any = getattr(asyncio.tasks, "_scheduled_tasks", None)
if _LISTED is None:  # before Python 3.12
    _LISTED = asyncio.tasks._all_tasks  # type: ignore[attr-defined]  # noqa: SLF001  # no other way to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run."""

    scenario: Scenario
    violations: tuple[str, ...]
    history: History
    requests: int
    succeeded: int
    disturbed_blocks: int
    fetched_blocks: int
    callbacks: int
    virtual_s: float

    def with_violation(self, violation: str) -> "Outcome":
        """Return the same outcome with another violation."""
        return replace(self, violations=(*self.violations, violation))


def run_scenario(scenario: Scenario) -> Outcome:
    """Run a scenario. The same one gives the same history, always."""
    history = History()
    cluster = Cluster(scenario, history)
    with undisturbed(), _errors_reported(cluster):
        try:
            _drive(cluster)
        except Livelock as error:
            cluster.report(f"livelock: {error}")
        finally:
            violations, callbacks, virtual_s = tuple(cluster.violations), cluster.loop.callbacks, cluster.loop.now
            cluster.close()
    return Outcome(
        scenario=scenario,
        violations=violations,
        history=history,
        requests=len(cluster.clients),
        succeeded=sum(client.succeeded for client in cluster.clients),
        disturbed_blocks=cluster.block_faults.injected,
        fetched_blocks=cluster.fetched[0],
        callbacks=callbacks,
        virtual_s=virtual_s,
    )


def _drive(cluster: Cluster) -> None:
    faults = FaultPlan(cluster)
    cluster.start()
    faults.schedule()
    _audit_now_and_then(cluster)
    cluster.run(cluster.scenario.heals_at_s)
    if cluster.violations:
        return
    faults.heal()
    healed_s = cluster.loop.now
    cluster.run(healed_s + REQUESTS_END_S, lambda: all(client.over for client in cluster.clients))
    cluster.run(max(cluster.loop.now, healed_s + RECOVERY_S), lambda: all_ready(cluster))
    if cluster.violations:
        return
    last = cluster.add_client(_last_request(cluster))
    cluster.run(cluster.loop.now + REQUESTS_END_S, lambda: last.over)
    if last.over and not last.succeeded:
        cluster.report(f"a healed cluster refuses a request: {last.error}")
    _come_to_rest(cluster)


def _come_to_rest(cluster: Cluster) -> None:
    """Let time pass until nothing is left, and report what is left after `REST_S`, or believed after `BELIEFS_S`."""
    since_s = cluster.loop.now
    while not cluster.violations:
        cluster.run(cluster.loop.now + LOOKS_EVERY_S)
        left, mistakes = left_at_rest(cluster), misbelieved(cluster)
        if not left and not mistakes:
            break
        rested_s = cluster.loop.now - since_s
        for problem in (*(left if rested_s >= REST_S else ()), *(mistakes if rested_s >= BELIEFS_S else ())):
            cluster.report(problem)
    check_now(cluster)


def _last_request(cluster: Cluster) -> RequestPlan:
    return RequestPlan(
        name="last",
        at_s=cluster.loop.now,
        prompt=tuple(range(10, 23)),
        max_tokens=4,
        temperature=1.0,
        seed=5,
        choices=1,
        salt="",
        stop_token_ids=(),
        deadline_s=None,
        leaves_after_s=None,
        cancels_by_id=False,
        pause_s=0.0,
    )


def _audit_now_and_then(cluster: Cluster) -> None:
    check_now(cluster)
    cluster.loop.on_host(cluster.loop.world, AUDITS_EVERY_S, _audit_now_and_then, cluster)


class _ErrorLog(logging.Handler):
    """Reports what the product logs as an error: it says so of mistakes of ours."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(logging.ERROR)
        self._cluster = cluster

    def emit(self, record: logging.LogRecord) -> None:
        """Report a record."""
        text = record.getMessage()
        if not text.startswith(EXPECTED_LOGS):
            error = record.exc_info[1] if record.exc_info else None
            self._cluster.report(f"logged: {text}" + (f": {error!r}" if error else ""))


@contextmanager
def _errors_reported(cluster: Cluster) -> Iterator[None]:
    """Report the product's errors."""
    root, handler = logging.getLogger(), _ErrorLog(cluster)
    others, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = others


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let nothing be logged but errors, nothing be collected, and asyncio keep no list of tasks: hosts have theirs.

    For one run, or for many: within this, doing it again costs nothing.
    """
    if "add" in vars(_LISTED):
        yield
        return
    silenced, collects = logging.root.manager.disable, gc.isenabled()
    logging.disable(max(silenced, logging.WARNING))
    gc.disable()
    _LISTED.add = id  # called for each task that starts: a function that does nothing
    try:
        with quick_values():
            yield
    finally:
        del _LISTED.add
        if collects:
            gc.enable()
        logging.disable(silenced)
