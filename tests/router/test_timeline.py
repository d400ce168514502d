"""What the durations of an answer say."""

import pytest

from router.timeline import Timeline


@pytest.mark.parametrize("tokens", [1, 4])
def test_the_hand_over_is_the_second_arrivals_delay_less_a_step_however_many_tokens_a_step_brings(tokens: int) -> None:
    now_s = 0.0
    timeline = Timeline(lambda: now_s)
    timeline.begin_attempt()
    for arrival, count in ((1.0, 1), (1.05, tokens), (1.07, tokens), (1.09, tokens)):
        now_s = arrival
        timeline.tokens(count)
    timings = timeline.timings(handed_over=True, decode_step_s=9.0)
    assert timings.handover_s == pytest.approx(0.03)
    assert timings.tpot_s == pytest.approx(0.09 / (3 * tokens))
    assert timeline.timings(handed_over=False, decode_step_s=9.0).handover_s == 0.0
