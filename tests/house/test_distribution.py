"""The lists by which tests are shared among processes name files that are there, and all that start clusters."""

from pathlib import Path

import pytest

from tests.distribution import LONG, PROCESSES, rank_of, unit_of

ROOT = Path(__file__).resolve().parents[2]
FILES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("test_*.py"))]
STARTS_CLUSTERS = ("running_cluster(", "RayCluster(")


@pytest.mark.parametrize("named", PROCESSES + LONG)
def test_what_is_named_is_there(named: str) -> None:
    assert any(file.startswith(named) for file in FILES)


def test_no_two_clusters_run_at_once() -> None:
    outside = [
        file
        for file in FILES
        if unit_of(f"{file}::test") == file
        and not file.startswith(("tests/deploy/", "tests/house/"))
        and any(start in (ROOT / file).read_text() for start in STARTS_CLUSTERS)
    ]
    assert not outside, "name them in PROCESSES of tests/distribution.py"


def test_clusters_begin_first_and_files_stay_whole() -> None:
    ranks = {file: rank_of(f"{file}::test[1-a]") for file in FILES}
    assert {rank for file, rank in ranks.items() if file.startswith(PROCESSES)} == {0}
    assert all(rank > 0 for file, rank in ranks.items() if not file.startswith(PROCESSES))
    assert unit_of("tests/router/test_ledger.py::test_a[b::c]") == "tests/router/test_ledger.py"
