"""``python -m tests.planted_bugs [--json]``: plants each bug of the catalogue and says by which layer it is caught.

Exits with 1 when one was not, or when a layer complains without a bug.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable

import pytest
from hypothesis import settings

from tests.machines.machine_settings import HUNT, QUICK
from tests.planted_bugs.catalog import BUGS, PlantedBug


def main() -> int:
    """Run all."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted_bugs", description=__doc__)
    parser.add_argument("--json", action="store_true", help="facts as JSON on standard output")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # what the product says of planted mistakes
    found = [_plant(bug) for bug in BUGS]
    caught = sum(bool(each["caught"]) for each in found)
    layers = dict.fromkeys(bug.layer for bug in BUGS)
    false_alarms = [layer.__name__ for layer in layers if not _content(layer)]
    sys.stderr.write(f"{caught} of {len(BUGS)} caught; complaints without a bug: {len(false_alarms)}\n")
    if options.json:
        summary = {"planted": len(BUGS), "caught": caught, "false_alarms": false_alarms, "bugs": found}
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return 0 if caught == len(BUGS) and not false_alarms else 1


def _plant(bug: PlantedBug) -> dict[str, object]:
    told = ""
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        try:
            bug.layer(HUNT)
        except AssertionError as error:
            told = str(error).partition("\n")[0]
    caught = bug.complaint in told
    complaint = bug.complaint if caught else told
    sys.stderr.write(f"B{bug.number}: {'caught' if caught else 'MISSED'} by {bug.layer.__name__}: {complaint}\n")
    return {
        "bug": f"B{bug.number}",
        "origin": bug.origin,
        "planted": bug.mistake,
        "layer": bug.layer.__name__,
        "caught": caught,
        "complaint": complaint,
    }


def _content(layer: Callable[[settings], None]) -> bool:
    try:
        layer(QUICK)
    except AssertionError as error:
        sys.stderr.write(f"{layer.__name__} complains without a bug: {error}\n")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
