"""`baton check`: runs the simulation over many seeds. Exit code 0 when every invariant held, 1 when one did not."""

import argparse
import gc
import json
import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simulation.run import Outcome, run_scenario
from simulation.scenario import draw_scenario
from simulation.shrink import shrink

COLLECT_EVERY = 50
"""Seeds between two collections of garbage: none happens within a run."""
SHOWN_FAILURES = 3
REPEAT_EVERY = 100
"""Every such seed runs twice, and both histories must be the same."""
SHOWN_LINES = 200


@dataclass(slots=True)
class Totals:
    """What the runs so far amount to."""

    seeds: int = 0
    failed: int = 0
    requests: int = 0
    succeeded: int = 0
    disturbed_blocks: int = 0
    virtual_s: float = 0.0
    repeated: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count a run."""
        self.seeds += 1
        self.failed += bool(outcome.violations)
        self.requests += outcome.requests
        self.succeeded += outcome.succeeded
        self.disturbed_blocks += outcome.disturbed_blocks
        self.virtual_s += outcome.virtual_s


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds that the command line names."""
    options = _options(arguments)
    facts, console = Console(quiet=options.json, highlight=False), Console(stderr=True, highlight=False)
    totals, began = Totals(), time.monotonic()
    gc.collect()
    gc.freeze()
    with _progress(console, silent=options.json) as progress:
        bar = progress.add_task("seeds", total=options.seeds)
        for seed in range(options.first, options.first + options.seeds):
            outcome = _checked(seed, totals)
            totals.add(outcome)
            if outcome.violations and totals.failed <= SHOWN_FAILURES:
                _show(outcome, facts, as_json=options.json)
            if totals.seeds % COLLECT_EVERY == 0:
                gc.collect()
            progress.update(bar, advance=1, description="seeds" if not totals.failed else f"{totals.failed} failed")
    _report(totals, time.monotonic() - began, facts, as_json=options.json)
    return 1 if totals.failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="baton check", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--json", action="store_true", help="facts as JSON on standard output, and no progress")
    return parser.parse_args(arguments)


def _progress(console: Console, *, silent: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=silent or not console.is_terminal)


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


def _show(outcome: Outcome, facts: Console, *, as_json: bool) -> None:
    """Print a failing seed, shrunk."""
    small = shrink(outcome)
    scenario = small.scenario
    lines = small.history.lines()
    if as_json:
        found = {
            "seed": scenario.seed,
            "violations": outcome.violations,
            "shrunk_violations": small.violations,
            "faults": [fault.describe() for fault in scenario.faults],
            "requests": len(scenario.requests),
            "history": lines[-SHOWN_LINES:],
        }
        sys.stdout.write(json.dumps(found) + "\n")
        return
    facts.print(f"[red]seed {scenario.seed}[/red]: {outcome.violations[0]}", soft_wrap=True)
    facts.print(f"  shrunk to {len(scenario.faults)} faults and {len(scenario.requests)} requests:", soft_wrap=True)
    for fault in scenario.faults:
        facts.print(f"    {fault.describe()}", markup=False, soft_wrap=True)
    for line in lines[-SHOWN_LINES:]:
        facts.print(f"  {line}", markup=False, soft_wrap=True)


def _report(totals: Totals, took_s: float, facts: Console, *, as_json: bool) -> None:
    rate = totals.seeds / took_s if took_s else 0.0
    if as_json:
        summary = {
            "seeds": totals.seeds,
            "failed": totals.failed,
            "requests": totals.requests,
            "succeeded": totals.succeeded,
            "disturbed_blocks": totals.disturbed_blocks,
            "repeated": totals.repeated,
            "virtual_s": round(totals.virtual_s, 1),
            "took_s": round(took_s, 2),
            "seeds_per_s": round(rate, 1),
        }
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    verdict = f"[red]{totals.failed} failed[/red]" if totals.failed else "[green]every invariant held[/green]"
    facts.print(
        f"{totals.seeds} seeds: {verdict}. {totals.requests} requests, {totals.succeeded} answered in full, "
        f"{totals.disturbed_blocks} blocks disturbed, {totals.virtual_s:.0f} simulated seconds in {took_s:.1f} s "
        f"({rate:.0f} seeds a second).",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
