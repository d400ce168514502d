"""The lists by which tests are shared among processes name files that are there, and all that start clusters on Ray."""

from pathlib import Path

import pytest

from tests.distribution import BY_HAND, LONG, ON_RAY, WITH_THEM, rank_of, unit_of

ROOT = Path(__file__).resolve().parents[2]
FILES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("test_*.py"))]
OF_A_CLUSTER_ON_RAY = ("running_cluster(", "shared_ray")


def on_ray(file: str) -> bool:
    text = (ROOT / file).read_text()
    return not file.startswith("tests/house/") and any(word in text for word in OF_A_CLUSTER_ON_RAY)


@pytest.mark.parametrize("named", [ON_RAY, WITH_THEM, *LONG])
def test_what_is_named_is_there(named: str) -> None:
    assert any(file.startswith(named) for file in FILES)


def test_clusters_on_ray_are_one_unit_and_it_begins_first() -> None:
    outside = [file for file in FILES if on_ray(file) and unit_of(f"{file}::test") != ON_RAY]
    assert not outside, "move them to tests/end_to_end"
    assert not [file for file in BY_HAND if on_ray(file)]
    assert {file for file in FILES if rank_of(f"{file}::test[1-a]") == 0} == {
        file for file in FILES if unit_of(f"{file}::test[1-a]") == ON_RAY
    }


def test_other_files_stay_whole() -> None:
    assert unit_of("tests/router/test_ledger.py::test_a[b::c]") == "tests/router/test_ledger.py"
    assert unit_of(f"{BY_HAND[0]}::test") == BY_HAND[0]
