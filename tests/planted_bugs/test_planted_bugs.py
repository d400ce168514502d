"""Plants each historical bug in turn: the layer that stands against it must notice, and say nothing without it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.machines.machine_settings import HUNT, QUICK
from tests.planted_bugs.catalog import BUGS, PlantedBug

TABLE = Path(__file__).with_name("README.md")
LAYERS = list(dict.fromkeys(bug.layer for bug in BUGS))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"B{bug.number}")
def test_the_layer_notices(bug: PlantedBug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    with pytest.raises(AssertionError, match=re.escape(bug.complaint)):
        bug.layer(HUNT)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer.__name__))
def test_the_layer_is_content_without_a_bug(layer: Callable[[settings], None]) -> None:
    layer(QUICK)


def test_the_table_says_what_the_code_does() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if re.match(r"\| B\d", line)]
    assert rows == [bug.row() for bug in BUGS]
    assert [bug.number for bug in BUGS] == list(range(1, 17))
