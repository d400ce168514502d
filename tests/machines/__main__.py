"""``python -m tests.machines [--examples N] [--steps N] [--json]``: the state machines, for long, with new examples.

Exits with 1 when a machine found something; its history is on standard error.
"""

import argparse
import json
import logging
import sys
import time
import traceback

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.machines.block_pool import BlockPoolMachine
from tests.machines.directory import DirectoryMachine
from tests.machines.handover import HandoverMachine
from tests.machines.machine_settings import LONG
from tests.machines.request_flow import RequestFlowMachine
from tests.machines.token_stream import TokenStreamMachine

MACHINES: tuple[type[RuleBasedStateMachine], ...] = (
    BlockPoolMachine,
    DirectoryMachine,
    HandoverMachine,
    TokenStreamMachine,
    RequestFlowMachine,
)


def main() -> int:
    """Run each machine in turn and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.machines", description=__doc__)
    parser.add_argument("--examples", type=int, default=LONG.max_examples, help="histories of each machine")
    parser.add_argument("--steps", type=int, default=LONG.stateful_step_count, help="the most steps of a history")
    parser.add_argument("--json", action="store_true", help="facts as JSON on standard output")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    effort = settings(LONG, max_examples=options.examples, stateful_step_count=options.steps)
    found = [_run(machine, effort) for machine in MACHINES]
    failed = sum(bool(each["failure"]) for each in found)
    if options.json:
        sys.stdout.write(json.dumps({"failed": failed, "machines": found}, indent=1) + "\n")
    return 1 if failed else 0


def _run(machine: type[RuleBasedStateMachine], effort: settings) -> dict[str, object]:
    began, failure = time.monotonic(), ""
    try:
        run_state_machine_as_test(machine, settings=effort)
    except Exception as error:  # noqa: BLE001  # whatever a machine finds is told, and the next one runs
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}"
    took_s = round(time.monotonic() - began, 1)
    sys.stderr.write(f"{machine.__name__}: {failure or 'nothing found'} ({took_s} s)\n")
    return {
        "machine": machine.__name__,
        "histories": effort.max_examples,
        "most_steps": effort.stateful_step_count,
        "failure": failure,
        "took_s": took_s,
    }


if __name__ == "__main__":
    sys.exit(main())
