"""The simulated cluster holds its invariants, is one history a seed, and notices broken components."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster_core.holds import Hold, LeaseHold, WriterHold
from cluster_core.identity import Attempt
from inference_engine.watched_holds import WatchedHolds
from kv_transfer.import_session import ImporterSession
from router.token_log import TokenLog
from simulation import check
from simulation.run import Outcome, run_scenario
from simulation.scenario import FaultKind, Scenario, draw_scenario
from simulation.shrink import shrink

ROOT = Path(__file__).resolve().parents[2]


def scenarios(wanted: Callable[[Scenario], bool], count: int) -> Iterator[Scenario]:
    """Yield the first ``count`` scenarios that are wanted."""
    seed = 0
    while count:
        scenario = draw_scenario(seed)
        seed += 1
        if wanted(scenario):
            count -= 1
            yield scenario


def first_failure(wanted: Callable[[Scenario], bool], count: int) -> Outcome:
    """Run scenarios until one fails."""
    for scenario in scenarios(wanted, count):
        outcome = run_scenario(scenario)
        if outcome.violations:
            return outcome
    pytest.fail("nothing was noticed")


def moves_blocks(scenario: Scenario) -> bool:
    return scenario.placement == "split"


@pytest.mark.parametrize("first", [0, 50])
def test_histories_hold(first: int) -> None:
    for seed in range(first, first + 50):
        outcome = run_scenario(draw_scenario(seed))
        assert not outcome.violations, "\n".join([f"seed {seed}: {outcome.violations}", *outcome.history.lines()])


def without_wishes(scenario: Scenario) -> Scenario:
    """Return it as it was drawn before requests had stop strings and did without recovery."""
    requests = tuple(replace(request, stops_after=None, recover=True) for request in scenario.requests)
    return replace(scenario, requests=requests)


@pytest.mark.parametrize("seed", [10803, 12070, 17487, 51637, 106458, 405350, 406998, 408044, 414444, 519700, 520650])
def test_seeds_that_once_failed_hold(seed: int) -> None:
    assert run_scenario(without_wishes(draw_scenario(seed))).violations == ()


def test_a_stop_string_before_the_blocks_have_come_ends_one_answer_alone() -> None:
    assert run_scenario(draw_scenario(173)).violations == ()


def test_without_faults_everybody_is_answered() -> None:
    def undisturbed(scenario: Scenario) -> bool:
        return not scenario.faults and not any(
            plan.deadline_s is not None or plan.leaves_after_s is not None for plan in scenario.requests
        )

    for scenario in scenarios(undisturbed, 3):
        outcome = run_scenario(scenario)
        assert outcome.succeeded == outcome.requests


def test_a_seed_is_one_history_here_and_in_another_process() -> None:
    seeds = [scenario.seed for scenario in scenarios(lambda scenario: len(scenario.faults) > 3, 3)]
    code = (
        "from simulation.run import run_scenario as run\n"
        "from simulation.scenario import draw_scenario as draw\n"
        f"print(*(run(draw(seed)).history.fingerprint() for seed in {seeds}))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    here = [run_scenario(draw_scenario(seed)).history.fingerprint() for seed in seeds]
    assert told == here


def test_damaged_blocks_are_noticed_where_digests_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImporterSession, "_compare", lambda _self, _position: None)

    def damages(scenario: Scenario) -> bool:
        return moves_blocks(scenario) and any(fault.variant in {"flipped", "short"} for fault in scenario.faults)

    assert "wrong tokens" in str(first_failure(damages, 40).violations)


def test_a_lease_that_is_not_given_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    release = WatchedHolds.release

    def forgetful(self: WatchedHolds, hold: Hold) -> int:
        return 0 if isinstance(hold, LeaseHold) else release(self, hold)

    monkeypatch.setattr(WatchedHolds, "release", forgetful)
    assert "had a hold without an owner" in str(first_failure(moves_blocks, 5).violations)


def test_bytes_that_land_in_a_block_without_a_writer_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    acquire, release_block = WatchedHolds.acquire, WatchedHolds.release_block

    def acquire_others(self: WatchedHolds, index: int, hold: Hold) -> None:
        if not isinstance(hold, WriterHold):
            acquire(self, index, hold)

    def release_others(self: WatchedHolds, index: int, hold: Hold) -> None:
        if not isinstance(hold, WriterHold):
            release_block(self, index, hold)

    monkeypatch.setattr(WatchedHolds, "acquire", acquire_others)
    monkeypatch.setattr(WatchedHolds, "release_block", release_others)
    assert "no writer holds" in str(first_failure(moves_blocks, 5).violations)


def test_an_attempt_that_writes_the_answer_from_its_beginning_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    begin_attempt = TokenLog.begin_attempt

    def forgetful(self: TokenLog) -> Attempt:
        self.tokens.clear()
        return begin_attempt(self)

    monkeypatch.setattr(TokenLog, "begin_attempt", forgetful)
    kinds = {FaultKind.CRASH, FaultKind.STEP, FaultKind.RESET}
    first_failure(lambda scenario: len(kinds & set(scenario.kinds)) > 1, 40)


def test_a_failing_history_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImporterSession, "_compare", lambda _self, _position: None)

    def damages(scenario: Scenario) -> bool:
        flips = any(fault.variant == "flipped" and fault.value == 1.0 for fault in scenario.faults)
        return moves_blocks(scenario) and flips and len(scenario.kinds) > 3

    failing = first_failure(damages, 40)
    small = shrink(failing, most_runs=40)
    assert small.violations
    assert FaultKind.BLOCKS in small.scenario.kinds
    assert len(small.scenario.faults) < len(failing.scenario.faults)
    assert len(small.scenario.requests) <= len(failing.scenario.requests)
    assert "FAULT" in "\n".join(small.history.lines())


def test_the_command_counts_what_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--seeds", "3", "--first", "7", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["seeds"] == 3
    assert told["failed"] == 0
    assert told["requests"] >= told["succeeded"] > 0


def test_seeds_on_two_cores_are_the_seeds_on_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "BATCH", 4)
    told = []
    for jobs in ("1", "2"):
        assert check.main(["--seeds", "14", "--jobs", jobs, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [each["jobs"] for each in told] == [1, 2]
    for name in ("seeds", "requests", "succeeded", "disturbed_blocks", "virtual_s", "repeated"):
        assert told[0][name] == told[1][name], name


@pytest.mark.parametrize("option", ["--seeds", "--requests", "--jobs", "--corruptions", "--blocks"])
@pytest.mark.parametrize("count", ["0", "-5", "x"])
def test_nothing_at_all_is_not_checked(option: str, count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        check.main([f"{option}={count}"])
    assert f"{option}: must be a whole number above 0" in capsys.readouterr().err


def test_the_command_stops_when_so_many_requests_were_simulated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "BATCH", 4)
    assert check.main(["--requests", "20", "--jobs", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 20 <= told["requests"] < 60
    assert told["seeds"] % 4 == 0


def test_the_command_shows_a_failing_seed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(WatchedHolds, "release", lambda _self, _hold: 0)
    assert check.main(["--seeds", "1", "--jobs", "1", "--first", str(next(scenarios(moves_blocks, 1)).seed)]) == 1
    told = capsys.readouterr().out
    assert "had a hold without an owner" in told
    assert "shrunk to" in told
