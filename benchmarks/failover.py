"""What a client loses when a decode worker dies, or falls silent, in the middle of its answer: time, and no token.

One prefill and two decode workers with the bench model, one thread each, started by `baton up`. In every round a worker
that writes an answer is killed (SIGKILL), or stopped (SIGSTOP) and woken while the other one goes on with the answer.
Answers do not depend on who computes them (`batch_invariant`), so each must be, token for token, the one that the same
prompt got undisturbed. The time is compared with that of the undisturbed request: a restart from scratch.
"""

import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks import report
from benchmarks.serving_cluster import serving_twice
from benchmarks.worker_breaker import Breaker, Disturbed
from cluster_rpc.client import BatonClient

KILL_DETECTED_AIM_S, STOP_DETECTED_AIM_S = 1.0, 5.5
FENCED_AIM_S = 12.0
"""From the waking of a stopped worker until it is ready again and holds nothing: as long as after a crash."""
RESUME_AIM = 0.5
"""What going on may take of what a restart from scratch takes."""
RESOLUTION_S = 1e-3
"""Client and router begin to count at moments that differ by a call: no detection is told to be faster."""
CASES = (
    "failover.kill.detected",
    "failover.kill.resumed",
    "failover.kill.resumed.cached",
    "failover.kill.tokens",
    "failover.stop.detected",
    "failover.stop.tokens",
    "failover.stop.fenced",
)


def kill_rows(kills: list[Disturbed]) -> list[report.Row]:
    """Return the rows of killed workers."""
    resumed_s = _median(kills, "resumed_s")
    return [
        _detected("failover.kill.detected", kills, KILL_DETECTED_AIM_S),
        _in_ms("failover.kill.resumed", resumed_s, "a restart from scratch", _median(kills, "scratch_s")).aiming_at(
            1 / RESUME_AIM
        ),
        _in_ms("failover.kill.resumed.cached", resumed_s, "a restart, prompt cached", _median(kills, "cached_s")),
        _tokens("failover.kill.tokens", kills),
    ]


def stop_rows(stops: list[Disturbed]) -> list[report.Row]:
    """Return the rows of stopped workers."""
    fenced_s = max(stop.fenced_s for stop in stops)
    aim = report.lower_is_better("failover.stop.fenced", fenced_s, "s", f"aim: {FENCED_AIM_S:g} s", FENCED_AIM_S)
    return [
        _detected("failover.stop.detected", stops, STOP_DETECTED_AIM_S),
        _tokens("failover.stop.tokens", stops),
        aim.aiming_at(1.0),
    ]


def _detected(case: str, rounds: list[Disturbed], aim_s: float) -> report.Row:
    """Return the row of the slowest detection."""
    slowest_s = max(RESOLUTION_S, *(each.detected_s for each in rounds))
    return _in_ms(case, slowest_s, f"aim: {aim_s:g} s", aim_s).aiming_at(1.0)


def _tokens(case: str, rounds: list[Disturbed]) -> report.Row:
    """Return the row that counts the tokens which are neither lost nor repeated nor others."""
    equal = sum(each.equal_tokens for each in rounds)
    expected = sum(each.expected_tokens for each in rounds)
    return report.higher_is_better(case, equal, "tokens", "the undisturbed answers", expected).aiming_at(1.0)


def _in_ms(case: str, value_s: float, against: str, against_s: float) -> report.Row:
    return report.lower_is_better(case, 1000 * value_s, "ms", against, 1000 * against_s)


def _median(rounds: list[Disturbed], field: str) -> float:
    values: list[float] = [getattr(each, field) for each in rounds]
    return statistics.median(values)


async def _rounds(what: str, rounds: int, disturb: Callable[[], Awaitable[Disturbed]]) -> list[Disturbed]:
    done = []
    for _ in report.turns(what, rounds, 1):
        done.append(one := await disturb())
        report.progress.print(
            f"noticed after {1000 * one.detected_s:.0f} ms, next token after {1000 * one.resumed_s:.0f} ms; "
            f"from scratch {1000 * one.scratch_s:.0f} ms, with its prompt cached {1000 * one.cached_s:.0f} ms; "
            f"{one.attempts} attempts, {one.late_tokens} late tokens dropped"
        )
    return done


async def measure(address: str, *, quick: bool) -> list[report.Row]:
    """Return a row for each of `CASES`."""
    async with BatonClient(address) as client:
        breaker = Breaker(client)
        kills = await _rounds("workers killed", 1 if quick else 7, breaker.kill)
        stops = await _rounds("workers stopped", 1 if quick else 3, breaker.stop)
    return [*kill_rows(kills), *stop_rows(stops)]


def main() -> None:
    """Measure and print."""
    options = report.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report.progress.print("starting a cluster")
        with serving_twice(Path(folder)) as address:
            rows = asyncio.run(measure(address, quick=options.quick))
            report.progress.print("ending it")
    report.show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
