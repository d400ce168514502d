"""A `RequestReport` as lines for a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from cluster_core.handoff import EXACT, FetchReport, HandoffReport
from cluster_launcher.request_report import RequestReport, gigabytes_per_s, where
from cluster_launcher.timeline import TimelineSpan, draw_timeline, duration
from cluster_rpc.answers import AttemptView, Candidate

_FIRST_TRY = "first try"
_SHOWN_CANDIDATES = 4
_INDENT = 2
_NAME_WIDTH = 8
_DURATIONS_WIDTH = 24
_LEAST_AXIS = 16
_WIDEST = 120


def render_report(report: RequestReport, width: int, block_size_tokens: int = 0) -> Iterator[RenderableType]:
    """Yield the report's lines for a terminal of ``width`` characters.

    ``block_size_tokens`` of 0 leaves out how many blocks the cached tokens make.
    """
    for attempt in report.attempts:
        yield from _render_attempt(attempt)
    yield _line("cache", _cached(report, block_size_tokens))
    handoff = report.handoff
    if handoff is None:
        yield _line("handoff", "nothing to hand over: one worker reads and writes")
    else:
        yield _line("handoff", _handed_over(handoff, report.attempts[-1].link))
    timings = report.completion.timings
    yield _line(
        "time",
        f"TTFT {duration(timings.ttft_s)}, handover {duration(timings.handover_s)}, "
        f"ITL {duration(timings.tpot_s)} mean, {duration(report.itl_median_s)} median, "
        f"{report.completion.completion_tokens} tokens in {duration(timings.total_s)}",
    )
    spans = report.attempts[-1].spans if report.attempts else ()
    stages = [TimelineSpan(name=span.name, start_s=span.start_s, end_s=span.end_s) for span in spans]
    axis = max(_LEAST_AXIS, min(width, _WIDEST) - _INDENT - _NAME_WIDTH - _DURATIONS_WIDTH)
    for line in draw_timeline(stages, axis, _NAME_WIDTH):
        yield Padding(line, (0, 0, 0, _INDENT))


def _handed_over(handoff: HandoffReport, link: str) -> str:
    """Say what was handed over: ``prefill-0 → decode-1 over ucx (cma): 3 blocks moved in 1 message, ...``."""
    messages = "1 message" if handoff.messages == 1 else f"{handoff.messages} messages"
    return (
        f"{link or handoff.transport}: {handoff.moved_blocks} blocks moved in {messages}, "
        f"{handoff.kept_blocks} were there already; {_on_the_wire(handoff)} {_took(handoff)}: "
        f"{duration(handoff.overlapped_s)} overlapped with the prefill, {duration(handoff.exposed_s)} exposed after it"
    )


def _took(handoff: HandoffReport) -> str:
    """Say how long blocks were under way: ``in 1.00 ms (3.15 GB/s)``; without a rate where that is not known well."""
    if rate := gigabytes_per_s(handoff):
        return f"in {duration(handoff.transfer_s)} ({rate:.2f} GB/s)"
    unsure = f" give or take {duration(handoff.unsure_s)}" if handoff.unsure_s else ""
    return f"in {duration(handoff.transfer_s)}{unsure}"


def _on_the_wire(handoff: HandoffReport) -> str:
    """Say what travelled: ``3.0 MiB, exact,`` or ``3.0 MiB, as int8, 0.25 of the blocks' 12.0 MiB,``."""
    if handoff.wire_format == EXACT:
        return f"{_bytes(handoff.moved_bytes)}, {EXACT},"
    blocks = f"{handoff.wire_share:.2f} of the blocks' {_bytes(handoff.exact_bytes)}"
    return f"{_bytes(handoff.moved_bytes)}, as {handoff.wire_format}, {blocks},"


def _fetched(fetch: FetchReport) -> str:
    """Say what the reader took from another worker's cache before it read."""
    text = (
        f"{fetch.moved_blocks} of {fetch.asked_blocks} blocks from the cache of {fetch.lender}, "
        f"{_bytes(fetch.moved_bytes)} in {duration(fetch.elapsed_s)}"
    )
    return f"{text}; it ended early: {fetch.failure}" if fetch.failure else text


def _render_attempt(attempt: AttemptView) -> Iterator[RenderableType]:
    again = attempt.rung not in {"", _FIRST_TRY}
    prefix = f"attempt {attempt.attempt}, {attempt.rung}: " if again else ""
    ending = "" if attempt.outcome in {"finished", "running"} else f"; it ended with: {attempt.outcome}"
    if attempt.kept_of_failed:
        ending += f"; {attempt.kept_of_failed} blocks of its hand-over were kept"
    yield _line("placed", f"{prefix}{where(attempt.chosen)}, {_why(attempt)}{ending}")
    if len(attempt.candidates) > 1:
        for candidate in attempt.candidates[:_SHOWN_CANDIDATES]:
            line = _candidate_line(candidate, chosen=_key(candidate) == _key(attempt.chosen))
            yield Padding(line, (0, 0, 0, _INDENT))
    if attempt.fetch is not None:
        yield _line("fetch", _fetched(attempt.fetch))


def _why(attempt: AttemptView) -> str:
    """Say in one sentence why the chosen candidate won."""
    others = [candidate for candidate in attempt.candidates if _key(candidate) != _key(attempt.chosen)]
    predicted = f"predicted {duration(attempt.chosen.total_s)}"
    if not others:
        return f"{predicted}, the only candidate"
    nearest = min(others, key=lambda candidate: candidate.total_s)
    gain_s = nearest.total_s - attempt.chosen.total_s
    if gain_s <= 0:
        return f"{predicted}, drawn among equals"
    return f"{predicted}, {duration(gain_s)} before {where(nearest)}"


def _candidate_line(candidate: Candidate, *, chosen: bool) -> Text:
    """Draw ``prefill-0 → decode-1   23.0 ms = prefill 20.0 ms + transfer 3.00 ms, 112 / 0 tokens cached``."""
    terms = " + ".join(f"{name} {duration(seconds)}" for name, seconds in candidate.terms if seconds > 0)
    text = f"{where(candidate):<24} {duration(candidate.total_s):>7} = {terms or 'nothing to do'}"
    if candidate.prefill_cached_tokens or candidate.decode_cached_tokens:
        text += f", {candidate.prefill_cached_tokens} / {candidate.decode_cached_tokens} tokens cached"
    if candidate.fetch_worker is not None:
        text += f", {candidate.fetch_blocks} blocks from {candidate.fetch_worker}"
    return Text(f"{'*' if chosen else ' '} {text}", style="" if chosen else "dim")


def _key(candidate: Candidate) -> tuple[object, object]:
    return candidate.prefill_worker, candidate.decode_worker


def _cached(report: RequestReport, block_size_tokens: int) -> str:
    completion = report.completion
    text = f"{completion.cached_tokens} of {completion.prompt_tokens} prompt tokens found in a cache"
    if block_size_tokens:
        text += f" ({completion.cached_tokens // block_size_tokens} blocks)"
    return text


def _bytes(count: int) -> str:
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _line(name: str, text: str) -> RenderableType:
    return Padding(Text.assemble((f"{name:<{_NAME_WIDTH}} ", "dim"), text), (0, 0, 0, _INDENT))
