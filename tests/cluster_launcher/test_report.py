"""What is told of one request."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from cluster_core.handoff import FetchReport, HandoffReport
from cluster_core.identity import RequestId, WorkerId
from cluster_launcher.report_rendering import render_report
from cluster_launcher.request_report import RequestReport, gigabytes_per_s, where
from cluster_rpc.answers import AttemptView, Candidate, Completion, StageSpan, Timings


def _candidate(prefill: str | None, decode: str, total_s: float) -> Candidate:
    return Candidate(
        prefill_worker=None if prefill is None else WorkerId(prefill),
        decode_worker=WorkerId(decode),
        total_s=total_s,
        terms=(("queue", 0.0), ("prefill", total_s)),
        prefill_cached_tokens=32,
        decode_cached_tokens=0,
    )


HANDOFF = HandoffReport(
    moved_blocks=3,
    kept_blocks=2,
    moved_bytes=3 << 20,
    messages=2,
    transfer_s=0.001,
    overlapped_s=0.0008,
    exposed_s=0.0003,
    transport="ucx",
    exact_bytes=3 << 20,
)


@pytest.fixture
def report() -> RequestReport:
    split, local = _candidate("prefill-0", "decode-1", 0.02), _candidate(None, "decode-0", 0.05)
    attempt = AttemptView(
        attempt=1,
        chosen=split,
        candidates=(split, local),
        outcome="finished",
        handoff=HANDOFF,
        rung="first try",
        link="prefill-0 → decode-1 over ucx (cma)",
        spans=(StageSpan(name="queue", start_s=0, end_s=0.001), StageSpan(name="decode", start_s=0.001, end_s=0.1)),
    )
    timings = Timings(queue_s=0.001, prefill_s=0.01, ttft_s=0.011, handover_s=0.002, tpot_s=0.005, total_s=0.1)
    completion = Completion(
        request_id=RequestId("r-1"),
        finish_reason="length",
        prompt_tokens=80,
        completion_tokens=3,
        cached_tokens=32,
        matched_token_id=None,
        matched_stop=None,
        seed=0,
        timings=timings,
    )
    return RequestReport(
        title="a prompt",
        text="abc",
        token_ids=(1, 2, 3),
        completion=completion,
        gaps_s=(0.004, 0.006),
        attempts=(attempt,),
    )


def _printed(report: RequestReport) -> str:
    console = Console(width=200, record=True, quiet=False, file=None, force_terminal=False)
    with console.capture() as capture:
        for line in render_report(report, 100, block_size_tokens=16):
            console.print(line)
    return capture.get()


def test_placement_cache_handoff_times_and_timeline_are_told(report: RequestReport) -> None:
    text = _printed(report)
    for told in (
        "prefill-0 → decode-1, predicted 20.0 ms, 30.0 ms before decode-0 alone",
        "32 of 80 prompt tokens found in a cache (2 blocks)",
        "prefill-0 → decode-1 over ucx (cma): 3 blocks moved in 2 messages, 2 were there already; 3.0 MiB, exact, ",
        "in 1.00 ms (3.15 GB/s): 800 µs overlapped with the prefill, 300 µs exposed after it",
        "TTFT 11.0 ms, handover 2.00 ms, ITL 5.00 ms mean, 5.00 ms median, 3 tokens in 100 ms",
        "* prefill-0 → decode-1     20.0 ms = prefill 20.0 ms, 32 / 0 tokens cached",
        "decode-0 alone           50.0 ms = prefill 50.0 ms, 32 / 0 tokens cached",
        "queue ",
        "decode ",
    ):
        assert told in text, text


def test_the_report_is_plain_json(report: RequestReport) -> None:
    facts = json.loads(json.dumps(report.as_json()))
    assert facts["token_ids"] == [1, 2, 3]
    (attempt,) = facts["attempts"]
    assert (attempt["placed"], attempt["rung"]) == ("prefill-0 → decode-1", "first try")
    handoff = attempt["handoff"]
    assert handoff["gigabytes_per_s"] == pytest.approx(3.145728)
    assert (handoff["overlapped_s"], handoff["exposed_s"]) == (0.0008, 0.0003)
    assert (handoff["wire_format"], handoff["wire_share"]) == ("exact", 1.0)
    assert (handoff["messages"], handoff["link"]) == (2, "prefill-0 → decode-1 over ucx (cma)")
    assert attempt["fetch"] is None


def test_rounded_blocks_are_told_with_their_format_and_how_much_less_travelled(report: RequestReport) -> None:
    (attempt,) = report.attempts
    rounded = replace(HANDOFF, exact_bytes=12 << 20, wire_format="int8")
    report = replace(report, attempts=(replace(attempt, handoff=rounded),))
    told = "2 were there already; 3.0 MiB, as int8, 0.25 of the blocks' 12.0 MiB, in 1.00 ms (3.15 GB/s): "
    assert told in _printed(report)
    handoff = report.as_json()["attempts"][0]["handoff"]
    assert (handoff["wire_format"], handoff["wire_share"]) == ("int8", 0.25)
    assert (handoff["moved_bytes"], handoff["exact_bytes"]) == (3 << 20, 12 << 20)


def test_a_hand_over_too_quick_for_a_rate_is_told_without_one(report: RequestReport) -> None:
    (attempt,) = report.attempts
    known = replace(HANDOFF, unsure_s=0.00025)
    quick = replace(HANDOFF, messages=1, unsure_s=0.0003)
    told = [_printed(replace(report, attempts=(replace(attempt, handoff=each),))) for each in (known, quick)]
    assert "in 1.00 ms (3.15 GB/s): " in told[0]
    assert "moved in 1 message, " in told[1]
    assert "in 1.00 ms give or take 300 µs: 800 µs overlapped" in told[1]
    assert (quick.bytes_per_s, quick.rated_s, known.rated_s) == (0.0, 0.0, 0.001)


def test_every_attempt_says_how_it_came_about_and_what_it_left(report: RequestReport) -> None:
    (last,) = report.attempts
    broken = replace(last, outcome="TransferFailed: block 9 did not arrive", handoff=None, link="", kept_of_failed=9)
    moved = replace(broken, rung="other decode worker", kept_of_failed=0)
    fetch = FetchReport(
        lender=WorkerId("decode-7"),
        asked_blocks=9,
        moved_blocks=4,
        moved_bytes=4096,
        transfer_s=0.001,
        elapsed_s=0.002,
        failure="decode-7 is lost",
    )
    resumed = replace(last, attempt=2, rung="partial pull", fetch=fetch)
    text = _printed(replace(report, attempts=(broken, moved, resumed)))
    for told in (
        "; it ended with: TransferFailed: block 9 did not arrive; 9 blocks of its hand-over were kept",
        "attempt 1, other decode worker: prefill-0 → decode-1",
        "attempt 2, partial pull: prefill-0 → decode-1",
        "4 of 9 blocks from the cache of decode-7, 4.0 KiB in 2.00 ms; it ended early: decode-7 is lost",
    ):
        assert told in text, text


def test_a_local_placement_is_called_by_its_worker() -> None:
    assert where(_candidate(None, "decode-0", 1.0)) == "decode-0 alone"


def test_nothing_moved_has_no_rate() -> None:
    nothing = replace(HANDOFF, moved_blocks=0, kept_blocks=5, moved_bytes=0, messages=0, exact_bytes=0, transfer_s=0.0)
    assert gigabytes_per_s(nothing) == 0.0
    assert nothing.wire_share == 1.0
