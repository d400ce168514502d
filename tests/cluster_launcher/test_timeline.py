"""Bars on a time axis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_launcher.timeline import TimelineSpan, draw_timeline, duration

MOMENTS = st.floats(0, 100, allow_nan=False)


@given(st.lists(st.tuples(st.sampled_from(["queue", "prefill", "transfer", "decode"]), MOMENTS, MOMENTS), min_size=1))
def test_every_span_is_one_line_of_the_same_width_with_something_to_see(spans: list[tuple[str, float, float]]) -> None:
    lines = draw_timeline(
        [TimelineSpan(name=name, start_s=min(pair), end_s=max(pair)) for name, *pair in spans], width=20
    )
    bars = [line.plain.split("│")[1] for line in lines]
    assert len(lines) == len(spans)
    assert all(len(bar) == 20 and bar.strip() for bar in bars)


def test_spans_lie_at_their_times() -> None:
    first, second = draw_timeline(
        [TimelineSpan(name="prefill", start_s=0, end_s=1), TimelineSpan(name="decode", start_s=1, end_s=4)], width=8
    )
    assert first.plain == "prefill │██      │      0 s +   1.00 s"
    assert second.plain == "decode  │  ██████│   1.00 s +   3.00 s"


def test_no_spans_no_lines() -> None:
    assert draw_timeline([]) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (1.5e-6, "1.50 µs"),
        (0.00034, "340 µs"),
        (0.0874, "87.4 ms"),
        (1.25, "1.25 s"),
        (93.7, "93.7 s"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
