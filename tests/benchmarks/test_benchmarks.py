"""The benchmarks' result is what `benchmarks/README.md` says: names, shape, and that one of them runs as typed."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import engine_cuda, report
from benchmarks.cuda_device import require_device
from cluster_launcher.app import Benchmark

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = [kind.value for kind in Benchmark]
ON_A_GPU = ("engine_cuda", "kv_cuda")
"""`baton bench engine --device cuda` and the like, whose results are of whoever has such a machine."""
ROW_KEYS = {"case", "value", "unit", "against", "against_value", "ratio"}
MORE_KEYS = {"aim", "met", "spread"}


def _cases(name: str) -> list[str]:
    return list(importlib.import_module(f"benchmarks.{name}").CASES)


def _checked_rows(text: str, cases: list[str]) -> None:
    result = json.loads(text)
    assert set(result) == {"machine", "rows"}
    assert sorted(row["case"] for row in result["rows"]) == sorted(cases)
    for row in result["rows"]:
        assert set(row) >= ROW_KEYS
        assert set(row) <= ROW_KEYS | MORE_KEYS
        assert row["value"] > 0
        assert row["ratio"] is None or row["ratio"] > 0
        assert (row["ratio"] is None) == row["against"].endswith("not installed")


def _spelt_out(name: str) -> list[str]:
    """Return the names that ``a.{b,c}`` stands for."""
    innermost = re.search(r"\{([^{}]*)\}", name)
    if innermost is None:
        return [name]
    before, after = name[: innermost.start()], name[innermost.end() :]
    if before.count("{") == before.count("}"):
        return [each for part in innermost[1].split(",") for each in _spelt_out(before + part + after)]
    # Within other braces: what follows it there, up to their next comma or end, belongs to each of its parts.
    start = max(before.rfind("{"), before.rfind(",")) + 1
    end = min(after.find(each) for each in ",}" if each in after)
    parts = [before[start:] + part + after[:end] for part in innermost[1].split(",")]
    return _spelt_out(before[:start] + ",".join(parts) + after[end:])


def test_the_readme_lists_exactly_the_cases() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    listed = [
        case for name in re.findall(r"^\| `([a-z0-9_.A-Z{},]+)` \|", text, re.MULTILINE) for case in _spelt_out(name)
    ]
    assert sorted(listed) == sorted(case for name in (*BENCHMARKS, *ON_A_GPU) for case in _cases(name))


def test_braces_in_a_name_stand_for_each_of_their_parts() -> None:
    assert _spelt_out("kv.{a,b}.{1,2}.x") == ["kv.a.1.x", "kv.a.2.x", "kv.b.1.x", "kv.b.2.x"]
    assert _spelt_out("kv.{a.{1,2},b.{3,4}}.x") == ["kv.a.1.x", "kv.a.2.x", "kv.b.3.x", "kv.b.4.x"]


@pytest.mark.parametrize("name", [*BENCHMARKS, *ON_A_GPU])
def test_committed_results_have_the_cases_of_their_benchmark(name: str) -> None:
    results = list((ROOT / "benchmarks" / "results").glob(f"{name}-*.json"))
    assert results or name in ON_A_GPU
    for path in results:
        _checked_rows(path.read_text(), _cases(name))


def test_a_benchmark_calls_itself_as_it_is_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "kv.py"), "--nope"])
    with pytest.raises(SystemExit, match="2"):
        report.parser("a test").parse_args()
    assert capsys.readouterr().err.startswith("usage: baton bench kv [-h]")


def test_a_ratio_above_one_means_ours_is_better() -> None:
    assert report.higher_is_better("rate", 4.0, "GB/s", "peer", 2.0).ratio == pytest.approx(2.0)
    assert report.lower_is_better("time", 4.0, "ms", "peer", 2.0).ratio == pytest.approx(0.5)


def test_an_aim_is_met_from_its_ratio_on() -> None:
    row = report.higher_is_better("rate", 3.0, "GB/s", "limit", 4.0)
    assert row.met is None
    assert row.aiming_at(0.75).met
    assert row.aiming_at(0.76).met is False
    assert set(row.as_json()) == ROW_KEYS
    assert set(row.aiming_at(0.75).over_rounds([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]).as_json()) == ROW_KEYS | MORE_KEYS


def test_where_a_peer_is_not_installed_nothing_is_met_or_missed() -> None:
    row = report.not_here("rate", 3.0, "GB/s", "NIXL").aiming_at(1.0)
    assert (row.against, row.against_value, row.ratio, row.met) == ("NIXL: not installed", None, None, None)


def test_the_spread_is_that_of_the_ratios_of_single_rounds() -> None:
    row = report.higher_is_better("rate", 3.0, "GB/s", "limit", 4.0)
    spread = row.over_rounds([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]).spread
    assert spread == pytest.approx((1.0, 3.0))


def test_measurements_take_turns_and_every_other_round_goes_backwards() -> None:
    assert list(report.turns("a test", rounds=3, measurements=2)) == [0, 1, 1, 0, 0, 1]


def test_the_medians_are_those_of_each_measurement_without_its_first() -> None:
    values = iter([900.0, 800.0, 60.0, 3.0, 2.0, 70.0])
    assert report.interleaved("a test", 3, [lambda: next(values), lambda: next(values)]) == [2.5, 65.0]


def test_a_single_round_counts() -> None:
    assert report.interleaved("a test", 1, [lambda: 4.0]) == [4.0]


def test_spans_that_overlap_are_counted_once() -> None:
    assert engine_cuda.covered([(5.0, 6.0), (0.0, 2.0), (1.0, 1.5), (1.0, 4.0)]) == pytest.approx(5.0)
    assert engine_cuda.covered([]) == 0


def test_a_decode_step_of_the_large_model_reads_its_weights_and_the_contexts() -> None:
    llama_3_8b = 8_030_261_248
    norms = 65 * 4096
    read_once = 2 * (llama_3_8b - norms - 128256 * 4096)
    context = 1024 + engine_cuda.STEPS // 2
    assert engine_cuda.step_bytes(1, 32) == read_once + 2 * 4096 + context * 128 * 1024


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_cuda_device_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        require_device()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "sees no CUDA device" in told


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
