"""When the stages of a request happened, and the durations that are told of them.

Times are those of the router's clock; the span of a transfer ends when its report arrived and lasted what it says.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster_rpc.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class Span:
    """A stage, in seconds since the request's arrival."""

    name: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class AttemptTimes:
    """Moments of one attempt, in seconds since the request's arrival; None: not yet, or never."""

    begun_s: float
    prefill_started_s: float | None = None
    first_token_s: float | None = None
    transfer_started_s: float | None = None
    transfer_ended_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None

    def spans(self, now_s: float) -> list[Span]:
        """Return the stages so far; one that goes on ends at ``now_s``, one that was broken off with the attempt."""
        now_s = now_s if self.ended_s is None else self.ended_s
        started = self.prefill_started_s
        spans = [Span("queue", self.begun_s, now_s if started is None else started)]
        if started is not None:
            spans.append(Span("prefill", started, now_s if self.first_token_s is None else self.first_token_s))
        if self.transfer_started_s is not None and self.transfer_ended_s is not None:
            spans.append(Span("transfer", self.transfer_started_s, self.transfer_ended_s))
        if self.first_token_s is not None and self.last_token_s is not None:
            begin = max(self.first_token_s, self.transfer_ended_s or 0.0)
            spans.append(Span("decode", begin, max(begin, self.last_token_s)))
        return spans


class Timeline:
    """The moments of one request, over all its attempts."""

    def __init__(self, clock: Callable[[], float], arrival: float | None = None) -> None:
        """``arrival`` is a moment of the clock; None: now."""
        self._clock = clock
        self._arrival = clock() if arrival is None else arrival
        self.attempts: list[AttemptTimes] = []
        self._prefill_started_s: float | None = None
        self._first_token_s: float | None = None
        self._second_token_s: float | None = None
        self._last_token_s = 0.0
        self._tokens = 0
        self._arrivals = 0

    def sibling(self) -> "Timeline":
        """Return a timeline of another answer to the same request."""
        return Timeline(self._clock, self._arrival)

    def now_s(self) -> float:
        """Return seconds since the arrival."""
        return self._clock() - self._arrival

    def begin_attempt(self) -> AttemptTimes:
        """Start the next attempt. The first one's queue began with the request."""
        times = AttemptTimes(begun_s=self.now_s() if self.attempts else 0.0)
        self.attempts.append(times)
        return times

    def continue_attempt(self) -> AttemptTimes:
        """Go on with an attempt whose decode leg was replaced: what its prefill leg has done stays done."""
        before = self.attempts[-1]
        before.ended_s = self.now_s()
        times = replace(before, transfer_started_s=None, transfer_ended_s=None, ended_s=None)
        self.attempts.append(times)
        return times

    def prefill_started(self) -> None:
        """Note that the prompt is being read."""
        now_s = self.now_s()
        self.attempts[-1].prefill_started_s = now_s
        if self._prefill_started_s is None:
            self._prefill_started_s = now_s

    def transferred(self, transfer_s: float) -> None:
        """Note that the blocks have arrived after ``transfer_s`` seconds."""
        times = self.attempts[-1]
        times.transfer_ended_s = self.now_s()
        times.transfer_started_s = max(times.begun_s, times.transfer_ended_s - transfer_s)

    def tokens(self, count: int) -> None:
        """Note ``count`` new tokens."""
        now_s = self.now_s()
        times = self.attempts[-1]
        if times.first_token_s is None:
            times.first_token_s = now_s
        if self._first_token_s is None:
            self._first_token_s = now_s
        self._tokens += count
        self._arrivals += 1
        if self._second_token_s is None and self._tokens > 1:
            self._second_token_s = now_s
        times.last_token_s = self._last_token_s = now_s

    def timings(self, *, handed_over: bool, decode_step_s: float) -> generation_pb2.Timings:
        """Return the durations for the client. ``decode_step_s`` stands in where too few arrivals tell a mean step."""
        first_s = self._first_token_s or 0.0
        prefill_started_s = first_s if self._prefill_started_s is None else self._prefill_started_s
        second_s = first_s if self._second_token_s is None else self._second_token_s
        steps = self._arrivals - 2  # a step brings several tokens where guesses come true
        step_s = (self._last_token_s - second_s) / steps if steps > 0 else decode_step_s
        handover_s = max(0.0, second_s - first_s - step_s) if handed_over and self._tokens > 1 else 0.0
        return generation_pb2.Timings(
            queue_s=prefill_started_s,
            prefill_s=max(0.0, first_s - prefill_started_s),
            ttft_s=first_s,
            handover_s=handover_s,
            tpot_s=(self._last_token_s - first_s) / (self._tokens - 1) if self._tokens > 1 else 0.0,
            total_s=self.now_s(),
        )
