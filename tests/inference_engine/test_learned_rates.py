"""Figures that workers learn of themselves."""

import pytest

from inference_engine.learned_rates import LearnedRates


def test_a_prefill_token_is_learned_beside_running_answers() -> None:
    rates = LearnedRates()
    for _ in range(60):
        rates.step_took(0.010, prefill_tokens=0, decode_tokens=4)
        rates.step_took(0.110, prefill_tokens=100, decode_tokens=4)
    assert rates.decode_step_s == pytest.approx(0.010)
    assert rates.prefill_s_per_token == pytest.approx(0.001)


def test_the_first_measurement_counts_in_full_and_later_ones_in_part() -> None:
    rates = LearnedRates()
    rates.step_took(1.0, prefill_tokens=10, decode_tokens=0)
    assert rates.prefill_s_per_token == pytest.approx(0.1)
    rates.step_took(2.0, prefill_tokens=10, decode_tokens=0)
    assert rates.prefill_s_per_token == pytest.approx(0.12)


def test_a_transfer_that_waited_for_its_prefill_does_not_spoil_the_rate() -> None:
    rates = LearnedRates()
    rates.transfer_took(1_000_000, transfer_s=0.01, exposed_s=0.002)
    rates.transfer_took(1_000_000, transfer_s=1.0, exposed_s=0.002)
    assert rates.transfer_bytes_per_s == pytest.approx(98_000_000)
    assert rates.transfer_fixed_s == pytest.approx(0.002)


def test_a_hand_over_that_moved_nothing_teaches_nothing() -> None:
    rates = LearnedRates()
    rates.transfer_took(0, transfer_s=0.0, exposed_s=0.0)
    assert rates == LearnedRates()
