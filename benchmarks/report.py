"""What every benchmark prints: the machine, and one row a comparison.

``{"machine": {...}, "rows": [{"case", "value", "unit", "against", "against_value", "ratio"}, ...]}``: ``against`` names
the limit or the peer that was measured in the same run, and ``ratio`` above 1 means that ours is better. A row may say
more: ``aim`` (the least ratio that was promised) with ``met``, and the ``spread`` of the ratio over the rounds.
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
    against_value: float | None
    """None: the peer is not here, as ``against`` says."""
    ratio: float | None
    """Above 1: ours is better."""
    aim: float | None = None
    """The least ratio that was promised; None: nothing was."""
    met: bool | None = None
    """Whether ``ratio`` is ``aim`` or more; None where one of them is missing."""
    spread: tuple[float, float] | None = None
    """The first and the third quartile of the ratios of single rounds, where there were several."""

    def aiming_at(self, ratio: float) -> "Row":
        """Return this row with its aim."""
        met = None if self.ratio is None else self.ratio >= ratio
        return dataclasses.replace(self, aim=ratio, met=met)

    def over_rounds(self, ours: Sequence[float], theirs: Sequence[float]) -> "Row":
        """Return this row, of a rate, with the spread of the rounds' ratios."""
        if len(ours) < 2:
            return self
        first, _, third = statistics.quantiles([one / other for one, other in zip(ours, theirs, strict=True)], n=4)
        return dataclasses.replace(self, spread=(first, third))

    def as_json(self) -> dict[str, object]:
        """Return the fields that say something; those that every row has are there in any case."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in _OPTIONAL or value is not None}


_OPTIONAL = ("aim", "met", "spread")


def not_here(case: str, value: float, unit: str, peer: str) -> Row:
    """Return the row of a comparison with a peer that is not installed."""
    against = f"{peer}: not installed"
    return Row(case=case, value=value, unit=unit, against=against, against_value=None, ratio=None)


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
    """Return the options that every benchmark has: ``--json``, and ``--quick`` for a short run.

    Usage and errors call the program as one types it, whichever way it was started.
    """
    options = argparse.ArgumentParser(prog=f"baton bench {Path(sys.argv[0]).stem}", description=description)
    options.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options.add_argument("--quick", action="store_true", help="fewer rounds: shows that it runs, not how fast")
    return options


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the result on standard output."""
    if as_json:
        json.dump({"machine": machine(), "rows": [row.as_json() for row in rows]}, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return
    table = Table("case", "value", "unit", "against", "its value", "ratio", "aim")
    for row in rows:
        theirs, ratio = ("-" if each is None else f"{each:.4g}" for each in (row.against_value, row.ratio))
        table.add_row(row.case, f"{row.value:.4g}", row.unit, row.against, theirs, ratio, _verdict(row))
    Console(width=150).print(table)


def _verdict(row: Row) -> str:
    if row.aim is None:
        return ""
    return f"{row.aim:.3g}" if row.met is None else f"{row.aim:.3g} {'met' if row.met else 'MISSED'}"
