"""``python -m tests.failure_grid [--json FILE] [--rounds N] [--seed N] [--stage NAME] [--fault NAME]``: all 72 cells.

Prints the grid: of each cell how long it took until nothing was held any more. Exits with 1 when a cell failed.
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from benchmarks.report import machine
from tests.failure_grid.cells import Cell, Outcome, run_cell
from tests.failure_grid.faults import FAULTS, STAGES
from tests.failure_grid.grid_cluster import GridCluster


async def run_grid(cells: Iterator[Cell]) -> list[Outcome]:
    """Run the cells, one after the other, on one cluster."""
    outcomes = []
    async with GridCluster() as cluster:
        for cell in cells:
            outcome = await run_cell(cluster, cell)
            outcomes.append(outcome)
            told = outcome.failure or "ok"
            sys.stderr.write(f"{cell.stage} / {cell.fault}, seed {cell.seed}: {told} ({outcome.cell_s:.1f} s)\n")
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the grid; where a cell was run more than once, the longest time."""
    faults = list(dict.fromkeys(outcome.fault for outcome in outcomes))
    lines = [f"{'until all is free':<22}" + "".join(f"{fault:>14}" for fault in faults)]
    for stage in dict.fromkeys(outcome.stage for outcome in outcomes):
        row = (_cell([each for each in outcomes if (each.stage, each.fault) == (stage, fault)]) for fault in faults)
        lines.append(f"{stage:<22}" + "".join(f"{told:>14}" for told in row))
    failed = [outcome for outcome in outcomes if outcome.failure]
    lines.append(f"{len(outcomes) - len(failed)} of {len(outcomes)} cells")
    lines += [f"{each.stage} / {each.fault}, seed {each.seed}: {each.failure}" for each in failed]
    return "\n".join(lines)


def _cell(outcomes: Sequence[Outcome]) -> str:
    if any(outcome.failure for outcome in outcomes):
        return "FAILED"
    return f"{max(outcome.free_s for outcome in outcomes) * 1e3:.0f} ms" if outcomes else ""


def main() -> int:
    """Read the options, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.failure_grid", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there as well")
    parser.add_argument("--rounds", type=int, default=1, help="run the grid so often, with new prompts each time")
    parser.add_argument("--seed", type=int, default=0, help="of the first cell's prompts; the others count on")
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="only this row; can be repeated")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="only this column; can be repeated")
    options = parser.parse_args()
    began, seeds = time.monotonic(), count(options.seed)
    cells = (
        Cell(stage=stage, fault=fault, seed=next(seeds))
        for _ in range(options.rounds)
        for stage in options.stage or STAGES
        for fault in options.fault or FAULTS
    )
    about = machine()
    outcomes = asyncio.run(run_grid(cells))
    passed = sum(not outcome.failure for outcome in outcomes)
    sys.stdout.write(table(outcomes) + "\n")
    if options.json is not None:
        document = {
            "machine": about,
            "seconds": round(time.monotonic() - began, 1),
            "passed": passed,
            "of": len(outcomes),
            "cells": [_rounded(outcome) for outcome in outcomes],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if passed == len(outcomes) else 1


def _rounded(outcome: Outcome) -> dict[str, object]:
    values = dataclasses.asdict(outcome)
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
