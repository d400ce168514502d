"""What every benchmark prints: the machine, and one row a comparison.

``{"machine": {...}, "rows": [{"case", "value", "unit", "against", "against_value", "ratio"}, ...]}``: ``against`` names
the limit or the peer that was measured in the same run, and ``ratio`` above 1 means that ours is better.
"""

import argparse
import dataclasses
import datetime as dt
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

progress = Console(stderr=True)
"""Where a benchmark says what it is doing; standard output carries the result alone."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison."""

    case: str
    value: float
    unit: str
    against: str
    against_value: float
    ratio: float
    """Above 1: ours is better."""


def higher_is_better(case: str, value: float, unit: str, against: str, against_value: float) -> Row:
    """Compare two rates."""
    ratio = value / against_value
    return Row(case=case, value=value, unit=unit, against=against, against_value=against_value, ratio=ratio)


def lower_is_better(case: str, value: float, unit: str, against: str, against_value: float) -> Row:
    """Compare two durations."""
    ratio = against_value / value
    return Row(case=case, value=value, unit=unit, against=against, against_value=against_value, ratio=ratio)


def turns(what: str, rounds: int, measurements: int) -> Iterator[int]:
    """Yield which measurement is next: each once a round, every other round backwards, so that drift hits all alike."""
    there = range(measurements)
    order = [position for number in range(rounds) for position in (there if number % 2 == 0 else reversed(there))]
    yield from track(order, description=what, console=progress)


def interleaved(what: str, rounds: int, measurements: Sequence[Callable[[], float]]) -> list[float]:
    """Run the measurements in `turns` and return their medians; the first of several rounds warms up and is dropped."""
    results: list[list[float]] = [[] for _ in measurements]
    for position in turns(what, rounds, len(measurements)):
        results[position].append(measurements[position]())
    return [statistics.median(values[1:] or values) for values in results]


def machine() -> dict[str, object]:
    """Describe the machine that this runs on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.system(),
        "date": dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d"),
    }


def parser(description: str) -> argparse.ArgumentParser:
    """Return the options that every benchmark has: ``--json``, and ``--quick`` for a short run."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options.add_argument("--quick", action="store_true", help="fewer rounds: shows that it runs, not how fast")
    return options


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the result on standard output."""
    if as_json:
        json.dump({"machine": machine(), "rows": [dataclasses.asdict(row) for row in rows]}, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    table = Table("case", "value", "unit", "against", "its value", "ratio")
    for row in rows:
        table.add_row(
            row.case, f"{row.value:.4g}", row.unit, row.against, f"{row.against_value:.4g}", f"{row.ratio:.3g}"
        )
    Console(width=150).print(table)
