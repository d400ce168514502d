"""Rates that several sides reach at the same work, measured in turn."""

import statistics
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from benchmarks import report

Measurement: TypeAlias = Callable[[], Awaitable[float]]
Name = TypeVar("Name")


async def in_turn(what: str, rounds: int, measurements: dict[Name, Measurement]) -> dict[Name, list[float]]:
    """Return what each measured in the same ``rounds`` rounds; where there are several, one before them warms up."""
    names = list(measurements)
    results: dict[Name, list[float]] = {name: [] for name in names}
    if rounds > 1:
        for name in names:
            await measurements[name]()
    for position in report.turns(what, rounds, len(names)):
        results[names[position]].append(await measurements[names[position]]())
    return results


def against(case: str, ours: list[float], peer: str, theirs: list[float]) -> report.Row:
    """Compare two rates, in GB/s, measured in the same rounds."""
    row = report.higher_is_better(case, statistics.median(ours), "GB/s", peer, statistics.median(theirs))
    return row.over_rounds(ours, theirs)
