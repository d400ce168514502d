"""How a hand-over uses its link: from a link's measurements to how many blocks are under way at a time. Pure.

That is what grouping follows from, too: what is asked for together is posted in one lot (`kv_transfer.lots`), and it
is asked for by halves of what may be under way.
"""

import math

from cluster_core.links import LinkReport

SMALL_BYTES = 4096
LARGE_BYTES = 1 << 20
UNMEASURED_IN_FLIGHT = 64
"""What is asked for at a time over a link that was never measured."""
FEWEST_IN_FLIGHT = 32
MOST_IN_FLIGHT = 2048
MOST_BYTES_IN_FLIGHT = 256 << 20
ROUND_TRIPS = 2.0
"""Asking for more takes a round trip, and more is asked for when half of what was asked for has come."""


def block_s(report: LinkReport, block_bytes: int) -> float:
    """Return the seconds that one of many blocks takes: a cost of its own, and one a byte. 0.0 where not measured."""
    return _message_s(report.small_in_bytes_per_s, report.large_in_bytes_per_s, block_bytes)


def block_out_s(report: LinkReport, block_bytes: int) -> float:
    """Return the seconds that a block would take the other way. 0.0 where not measured."""
    return _message_s(report.small_out_bytes_per_s, report.large_out_bytes_per_s, block_bytes)


def blocks_in_flight(report: LinkReport | None, block_bytes: int) -> int:
    """Return how many blocks must be under way for the link never to idle for want of being asked."""
    each_s = block_s(report, block_bytes) if report is not None else 0.0
    if report is None or not each_s:
        return UNMEASURED_IN_FLIGHT
    needed = math.ceil(ROUND_TRIPS * (report.call_s + report.round_trip_s) / each_s)
    most = max(1, min(MOST_IN_FLIGHT, MOST_BYTES_IN_FLIGHT // block_bytes))
    return min(max(needed, FEWEST_IN_FLIGHT), most)


def _message_s(small_bytes_per_s: float, large_bytes_per_s: float, message_bytes: int) -> float:
    if not (small_bytes_per_s and large_bytes_per_s):
        return 0.0
    own_s = max(0.0, SMALL_BYTES / small_bytes_per_s - SMALL_BYTES / large_bytes_per_s)
    return own_s + message_bytes / large_bytes_per_s
