"""`baton check`: many seeds of the simulation, and on demand a campaign of corrupted blocks.

Exit code 0 when every invariant held, 1 when one did not.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simulation.corruptions import Campaign, run_campaign
from simulation.run import run_scenario
from simulation.scenario import draw_scenario
from simulation.seeds import BATCH, Totals, keep_what_is_loaded, run_until
from simulation.shrink import shrink

SHOWN_FAILURES = 3
SHOWN_LINES = 200


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    options = _options(arguments)
    facts, console = Console(quiet=options.json, highlight=False), Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    keep_what_is_loaded()
    found: dict[str, Any] = {"machine": _machine()}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        if options.corruptions or options.blocks:
            found["campaign"] = _corrupt(options, bars, facts)
        if options.seeds or options.requests:
            found |= _simulate(options, bars, facts)
    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 1 if found.get("failed") or found.get("campaign", {}).get("wrong") else 0


def _machine() -> dict[str, Any]:
    today = datetime.now(tz=UTC).date().isoformat()
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system(), "date": today}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="baton check", description=__doc__)
    parser.add_argument("--seeds", type=_count, help="how many (default 1000, unless something else is asked for)")
    parser.add_argument("--requests", type=_count, help="run as many seeds as it takes to simulate so many requests")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--corruptions", type=_count, default=0, help="move so many blocks that something corrupts")
    parser.add_argument("--blocks", type=_count, default=0, help="move so many blocks that nothing corrupts")
    parser.add_argument("--json", action="store_true", help="facts as JSON on standard output")
    options = parser.parse_args(arguments)
    if options.seeds is None and not (options.requests or options.corruptions or options.blocks):
        options.seeds = 1000
    return options


def _count(text: str) -> int:
    """Read a number above 0: of nothing at all every invariant holds."""
    if not text.isascii() or not text.isdecimal() or not int(text):
        message = f"must be a whole number above 0, not {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _simulate(options: argparse.Namespace, bars: Progress, facts: Console) -> dict[str, Any]:
    """Run seeds until there are enough; shows those that failed, shrunk."""
    totals, began = Totals(), time.monotonic()
    bar = bars.add_task("requests" if options.requests else "seeds", total=options.requests or options.seeds)
    batches = _batches(options.first, options.seeds)
    jobs = max(1, min(options.jobs, -(-(options.seeds or options.requests) // BATCH)))

    def enough(so_far: Totals) -> bool:
        return bool(options.requests) and so_far.requests >= options.requests

    for some in run_until(enough, batches, jobs):
        totals.add(some)
        failed = f"{len(totals.failures)} failed" if totals.failures else None
        bars.update(bar, advance=some.requests if options.requests else some.seeds, description=failed)
    took_s = time.monotonic() - began
    shown = [_show(seed, violation, facts) for seed, violation in sorted(totals.failures)[:SHOWN_FAILURES]]
    summary = {
        "seeds": totals.seeds,
        "first": options.first,
        "failed": len(totals.failures),
        "failed_seeds": sorted(seed for seed, _ in totals.failures),
        "requests": totals.requests,
        "succeeded": totals.succeeded,
        "disturbed_blocks": totals.disturbed_blocks,
        "fetched_blocks": totals.fetched_blocks,
        "repeated": totals.repeated,
        "virtual_s": round(totals.virtual_s, 1),
        "took_s": round(took_s, 2),
        "jobs": jobs,
        "seeds_per_s": round(totals.seeds / took_s, 1) if took_s else 0.0,
        "requests_per_s": round(totals.requests / took_s, 1) if took_s else 0.0,
    }
    _tell(summary, facts)
    return {**summary, "shown": shown}


def _batches(first: int, seeds: int | None) -> Iterator[tuple[int, int]]:
    """Yield the batches of ``seeds`` seeds; None: without end."""
    for begin in count(first, BATCH) if seeds is None else range(first, first + seeds, BATCH):
        yield begin, BATCH if seeds is None else min(BATCH, first + seeds - begin)


def _show(seed: int, violation: str, facts: Console) -> dict[str, Any]:
    """Run a failing seed again, make it small, and tell of it."""
    small = shrink(run_scenario(draw_scenario(seed)))
    scenario = small.scenario
    lines = small.history.lines()[-SHOWN_LINES:]
    told = [fault.describe() for fault in scenario.faults]
    facts.print(f"[red]seed {seed}[/red]: {violation}", soft_wrap=True)
    facts.print(f"  shrunk to {len(scenario.faults)} faults and {len(scenario.requests)} requests:", soft_wrap=True)
    for line in [*(f"  {each}" for each in told), *lines]:
        facts.print(f"  {line}", markup=False, soft_wrap=True)
    return {
        "seed": seed,
        "violation": violation,
        "shrunk_violations": small.violations,
        "faults": told,
        "requests": len(scenario.requests),
        "history": lines,
    }


def _tell(summary: dict[str, Any], facts: Console) -> None:
    failed = summary["failed"]
    verdict = f"[red]{failed} failed[/red]" if failed else "[green]every invariant held[/green]"
    did = f"{summary['requests']} requests, {summary['succeeded']} answered in full"
    moved = f"{summary['disturbed_blocks']} blocks disturbed, {summary['fetched_blocks']} fetched"
    rate = f"{summary['seeds_per_s']:.0f} seeds and {summary['requests_per_s']:.0f} requests a second"
    took = f"{summary['virtual_s']:.0f} simulated seconds in {summary['took_s']:.1f} s"
    on = "one core" if summary["jobs"] == 1 else f"{summary['jobs']} cores"
    facts.print(
        f"{summary['seeds']} seeds: {verdict}. {did}, {moved}, {took} ({rate} on {on}).",
        soft_wrap=True,
    )


def _corrupt(options: argparse.Namespace, bars: Progress, facts: Console) -> dict[str, Any]:
    """Run the campaign."""
    began = time.monotonic()
    bar = bars.add_task("corruptions", total=options.corruptions + options.blocks)
    campaign: Campaign = run_campaign(
        seed=options.first,
        corruptions=options.corruptions,
        blocks=options.blocks,
        on_progress=lambda moved: bars.update(bar, completed=moved),
    )
    for wrong in campaign.wrong[:SHOWN_FAILURES]:
        facts.print(f"[red]{wrong}[/red]", soft_wrap=True)
    facts.print(
        f"{campaign.injected} corruptions, {campaign.caught} caught; {campaign.clean_blocks} blocks without any, "
        f"{campaign.false_alarms} refused; {time.monotonic() - began:.1f} s.",
        soft_wrap=True,
    )
    return {**campaign.facts(), "took_s": round(time.monotonic() - began, 2)}


if __name__ == "__main__":
    sys.exit(main())
