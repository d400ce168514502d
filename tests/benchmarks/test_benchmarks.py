"""The benchmarks' result is what `benchmarks/README.md` says: names, shape, and that one of them runs as typed."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from cluster_launcher.app import Benchmark

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = [kind.value for kind in Benchmark]
ROW_KEYS = {"case", "value", "unit", "against", "against_value", "ratio"}


def _cases(name: str) -> list[str]:
    return list(importlib.import_module(f"benchmarks.{name}").CASES)


def _checked_rows(text: str, cases: list[str]) -> None:
    result = json.loads(text)
    assert set(result) == {"machine", "rows"}
    assert sorted(row["case"] for row in result["rows"]) == sorted(cases)
    for row in result["rows"]:
        assert set(row) == ROW_KEYS
        assert row["value"] > 0
        assert row["ratio"] > 0


def test_the_readme_lists_exactly_the_cases() -> None:
    listed = re.findall(r"^\| `([a-z0-9_.A-Z]+)` \|", (ROOT / "benchmarks" / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(case for name in BENCHMARKS for case in _cases(name))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_committed_results_have_the_cases_of_their_benchmark(name: str) -> None:
    results = list((ROOT / "benchmarks" / "results").glob(f"{name}*.json"))
    assert results
    for path in results:
        _checked_rows(path.read_text(), _cases(name))


def test_a_ratio_above_one_means_ours_is_better() -> None:
    assert report.higher_is_better("rate", 4.0, "GB/s", "peer", 2.0).ratio == pytest.approx(2.0)
    assert report.lower_is_better("time", 4.0, "ms", "peer", 2.0).ratio == pytest.approx(0.5)


def test_measurements_take_turns_and_every_other_round_goes_backwards() -> None:
    assert list(report.turns("a test", rounds=3, measurements=2)) == [0, 1, 1, 0, 0, 1]


def test_the_medians_are_those_of_each_measurement_without_its_first() -> None:
    values = iter([900.0, 800.0, 60.0, 3.0, 2.0, 70.0])
    assert report.interleaved("a test", 3, [lambda: next(values), lambda: next(values)]) == [2.5, 65.0]


def test_a_single_round_counts() -> None:
    assert report.interleaved("a test", 1, [lambda: 4.0]) == [4.0]


def test_baton_bench_prints_one_json_object() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster_launcher", "bench", "route", "--json", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _checked_rows(done.stdout, _cases("route"))
