"""The choice of guesses in simulated time: never slower than plain decoding, much faster where guesses come true."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.acceptance import KEPT_PER_STEP, Acceptance, AcceptancePool, GuessKind
from inference_engine.speculation_account import LENT_STEPS, STAKE_STEPS, SpeculationAccount
from inference_engine.speculation_control import Offer, SpeculationControl, StepReport
from inference_engine.step_times import DraftTimes, StepTimes
from tests.inference_engine.speculation_simulator import Load, Machine, simulate

CHANCES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
MACHINES = st.builds(
    Machine,
    fixed_s=st.sampled_from([0.002, 0.01, 0.03]),
    row_s=st.sampled_from([0.00005, 0.0003, 0.002, 0.01]),
    answer_s=st.sampled_from([0.0, 0.0005, 0.003]),
    second_row_s=st.sampled_from([0.0, 0.005, 0.02]),
    tile=st.sampled_from([1, 4, 8]),
    round_s=st.sampled_from([0.0, 0.0005, 0.003]),
    noise=st.sampled_from([0.0, 0.05, 0.2]),
    stumbles=st.sampled_from([0.0, 0.003]),
)
LOADS = st.builds(
    Load,
    batch=st.integers(1, 16),
    tokens=st.sampled_from([20, 100, 400]),
    chances=st.lists(CHANCES, min_size=1, max_size=4).map(tuple),
    offered=st.sampled_from([0.02, 0.3, 1.0]),
    most=st.sampled_from([2, 4, 8]),
)


@settings(max_examples=40, deadline=None)
@given(machine=MACHINES, load=LOADS, kind=st.sampled_from(list(GuessKind)), seed=st.integers(0, 2**16))
def test_never_slower_than_plain_decoding(machine: Machine, load: Load, kind: GuessKind, seed: int) -> None:
    if machine.round_s:
        kind = GuessKind.DRAFT_MODEL
    elif kind is GuessKind.DRAFT_MODEL:
        kind = GuessKind.MATCH
    outcome = simulate(machine, load, steps=1200, seed=seed, kind=kind)
    assert outcome.gain >= 0.98


@pytest.mark.parametrize("machine", [Machine(), Machine(second_row_s=0.003), Machine(tile=8), Machine(noise=0.2)])
@pytest.mark.parametrize("batch", [1, 8])
def test_much_faster_where_most_guesses_come_true(machine: Machine, batch: int) -> None:
    outcome = simulate(machine, Load(batch=batch, chances=(0.85,)), steps=400, seed=3)
    assert outcome.gain >= 1.5
    assert outcome.written / outcome.steps / batch >= 2.0


def test_a_draft_model_gains_too() -> None:
    outcome = simulate(Machine(round_s=0.001), Load(chances=(0.85,)), steps=400, seed=3, kind=GuessKind.DRAFT_MODEL)
    assert outcome.gain >= 1.5


def test_only_the_requests_that_gain_have_guesses_checked() -> None:
    machine = Machine(row_s=0.0012)
    mixed = simulate(machine, Load(batch=4, tokens=2000, chances=(0.95, 0.0, 0.0, 0.0)), steps=600, seed=1)
    assert mixed.accepted / mixed.guessed > 0.7
    assert mixed.gain > 1.1


def test_it_turns_itself_off_where_steps_are_full_and_on_again_when_they_are_not() -> None:
    control = SpeculationControl()
    full, empty = Machine(row_s=0.01, fixed_s=0.001), Machine()
    written = {machine: _drive(control, machine, 400) for machine in (full, empty)}
    assert written[full] < 1.1
    assert written[empty] > 1.5


def _drive(control: SpeculationControl, machine: Machine, steps: int) -> float:
    """Return the tokens a step over the second half; seven guesses of ten come true, counted exactly."""
    acceptance, late, owed = control.new_request(), 0, 0.0
    for step in range(steps):
        offer = Offer(acceptance, GuessKind.MATCH, 4)
        count = control.choose([offer], 100)[0] if control.wants_guesses(1) else 0
        owed += 0.7 * count
        accepted = min(count, int(owed))
        owed -= accepted
        if count:
            control.answer_took(offer, count, accepted)
        control.step_took(StepReport(batch=1, guesses=count, written=1 + accepted, elapsed_s=machine.step_s(1, count)))
        late += (1 + accepted) * (step >= steps // 2)
    return late / (steps - steps // 2)


def test_plain_steps_come_first_and_now_and_then() -> None:
    outcome = simulate(Machine(), Load(tokens=5000, chances=(1.0,)), steps=600, seed=1)
    assert outcome.counts[:2] == [0, 0]
    plain = [step for step, count in enumerate(outcome.counts) if not count]
    assert max(after - before for before, after in pairwise(plain)) <= 66


def test_room_bounds_the_guesses() -> None:
    control = SpeculationControl()
    for _ in range(4):
        control.step_took(StepReport(batch=3, guesses=0, written=3, elapsed_s=0.01))
    offers = [Offer(control.new_request(), GuessKind.LONG_MATCH, 8) for _ in range(3)]
    assert control.wants_guesses(3)
    assert sum(control.choose(offers, 2)) <= 2
    assert sum(control.choose(offers, 0)) == 0


def test_a_long_prompt_is_read_for_the_draft_model_only_if_the_answer_may_be_long() -> None:
    control = SpeculationControl()
    for _ in range(4):
        control.step_took(StepReport(batch=1, guesses=0, written=1, elapsed_s=0.01))
    gain = control.promised_gain(1)
    assert gain > 1.2
    assert control.may_catch_up(1, gain, tokens=2_000, to_write=400)
    assert not control.may_catch_up(1, gain, tokens=2_000, to_write=8)
    assert not control.may_catch_up(1, gain, tokens=50_000, to_write=100_000)
    assert not control.may_catch_up(2, gain, tokens=10, to_write=400), "nothing is known of two"
    assert not control.may_catch_up(1, 1.0, tokens=10, to_write=400)


def test_the_account_loses_no_more_than_its_stake_and_lends_no_more_than_its_limit() -> None:
    account = SpeculationAccount()
    assert account.stake_s(1.0) == STAKE_STEPS
    account.settle(-STAKE_STEPS, 1.0)
    assert account.stake_s(1.0) == 0.0
    assert not account.is_full(1.0)
    assert account.may_lend(LENT_STEPS, 1.0)
    account.lend(LENT_STEPS)
    assert not account.may_lend(0.1, 1.0)
    account.settle(LENT_STEPS + 2.0, 1.0)
    assert account.may_lend(LENT_STEPS, 1.0)
    assert account.stake_s(1.0) == 2.0, "gains repay first"
    account.settle(100.0, 1.0)
    assert account.stake_s(1.0) == STAKE_STEPS


def test_acceptance_is_learned_and_forgotten() -> None:
    pool = AcceptancePool()
    acceptance = Acceptance(pool)
    first = acceptance.chance(GuessKind.MATCH, 0)
    assert first == GuessKind.MATCH.value
    for step in range(20):
        acceptance.learn(GuessKind.MATCH, step, guessed=4, accepted=0)
    assert acceptance.chance(GuessKind.MATCH, 20) < 0.2
    assert Acceptance(pool).chance(GuessKind.MATCH, 20) < first, "others' guesses are judged by it too"
    assert Acceptance(pool).chance(GuessKind.LONG_MATCH, 20) == GuessKind.LONG_MATCH.value
    later = round(20 / (1 - KEPT_PER_STEP))
    assert acceptance.chance(GuessKind.MATCH, later) == pytest.approx(first, rel=0.1)


def test_guesses_after_the_first_that_failed_were_never_tried() -> None:
    whole, cut = Acceptance(AcceptancePool()), Acceptance(AcceptancePool())
    whole.learn(GuessKind.MATCH, 0, guessed=8, accepted=2)
    cut.learn(GuessKind.MATCH, 0, guessed=3, accepted=2)
    assert whole.chance(GuessKind.MATCH, 0) == cut.chance(GuessKind.MATCH, 0)


def test_step_times_are_estimated_from_their_neighbours() -> None:
    times = StepTimes()
    times.learn(1, 0, 0.010)
    assert times.plain_s(1) is None
    times.learn(1, 0, 0.012)
    assert times.plain_s(1) == 0.010, "of the first the least counts"
    assert times.checking_s(1, 10) == pytest.approx(0.013)
    times.learn(1, 8, 0.020)
    assert times.checking_s(1, 8) == 0.020
    assert times.checking_s(1, 4) == pytest.approx(0.015)
    assert times.checking_s(1, 12) == pytest.approx(0.0212)
    assert times.most_measured(1) == 8
    for _ in range(2):
        times.learn(4, 0, 0.030)
    assert times.checking_s(4, 8) == pytest.approx(0.060), "in proportion to the nearest batch"


def test_one_stumble_is_not_believed() -> None:
    times = StepTimes()
    for elapsed_s in (0.01, 0.01, 0.01, 1.0):
        times.learn(1, 0, elapsed_s)
    plain_s = times.plain_s(1)
    assert plain_s is not None
    assert plain_s < 0.012


def test_a_draft_models_reading_and_guessing_are_told_apart() -> None:
    times = DraftTimes()
    assert times.learn(0.004, rounds=4, answers=1, read=0) == 0.0
    assert times.round_s(1, 0.01) == pytest.approx(0.001)
    assert times.learn(0.014, rounds=4, answers=1, read=100) == pytest.approx(0.010)
    assert times.reading_s(50, 0.01) == pytest.approx(0.005)


def test_gains_count_what_the_draft_model_takes() -> None:
    slow = simulate(Machine(round_s=0.02), Load(chances=(0.9,)), steps=600, seed=1, kind=GuessKind.DRAFT_MODEL)
    assert slow.gain >= 0.98
    assert slow.guessed < 200
    assert simulate(replace(Machine(), round_s=0.0005), Load(chances=(0.9,)), steps=600, seed=1).gain > 2.0
