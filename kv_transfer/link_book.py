"""What one worker knows of the ways from others to itself: measured once for each life of the other, then learned.

Life of an entry: the other worker's life is measured when the two meet (`kv_transfer.link_probe`), which foresees how
fast a hand-over over the link will be. The first import takes the place of that guess, later ones refine it. A new life
of the other worker starts anew. The book holds the latest `MOST_LINKS`. Of an import that was too quick for its time to
be told well (`HandoffReport.rated_s`), no rate is learned: over a quick link that may be all of them, and the guess
stands.

Blocks that are rounded on their way (`kv_transfer.wire`) have a rate of their own beside that of exact ones, which a
fetch still moves over the same link: the bytes of the blocks, not of what travels, by a time in which they are packed
and expanded too. So whoever divides blocks' bytes by it foresees what a hand-over takes, and need not know the format.
"""

from dataclasses import replace

from cluster_core.handoff import EXACT, HandoffReport
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.links import LinkReport
from kv_transfer.link_plan import block_s, blocks_in_flight
from kv_transfer.settings import TransferSettings

MOST_LINKS = 256
SMOOTHING = 0.2
"""Weight of the newest import's fixed cost: the last dozen count."""
FORGETTING = 0.98
"""How much of the best rate is believed after each slower import: one beside other load says too little."""
TELLING_BYTES = 1 << 18
"""Imports of fewer bytes say nothing about a rate."""


class LinkBook:
    """The entries, by the other worker's id. Belongs to the event loop."""

    def __init__(self, block_bytes: int, settings: TransferSettings) -> None:
        self._block_bytes = block_bytes
        self._settings = settings
        self._links: dict[WorkerId, LinkReport] = {}
        self._rated: dict[WorkerId, Incarnation] = {}
        """Lives of which imports have shown the rate of exact blocks."""

    def known(self, peer: WorkerId, incarnation: Incarnation) -> LinkReport | None:
        """Return what was measured of this life of a worker; None where it was not."""
        report = self._links.get(peer)
        if report is None or report.incarnation != incarnation or not report.large_in_bytes_per_s:
            return None
        return report

    def enter(self, report: LinkReport) -> LinkReport:
        """Take a measurement in; returns it with what it foresees. What imports of the same life showed stays."""
        each_s = block_s(report, self._block_bytes)
        report = replace(report, rounded_bytes_per_s=0.0)  # what was rounded before may not be any more
        before = self._links.get(report.peer)
        fixed_s, imports = report.call_s + report.round_trip_s, 0
        bytes_per_s = self._block_bytes / each_s if each_s else 0.0
        if before is not None and before.incarnation == report.incarnation and before.imports:
            fixed_s, imports = before.fixed_s, before.imports
            bytes_per_s = before.bytes_per_s if self._is_rated(before) else bytes_per_s
        entry = replace(
            report,
            fixed_s=fixed_s,
            bytes_per_s=bytes_per_s,
            imports=imports,
            blocks_in_flight=self._in_flight(report),
        )
        self._put(entry)
        return entry

    def learn(self, peer: WorkerId, incarnation: Incarnation, report: HandoffReport) -> None:
        """Take in what an import over the link took."""
        if not report.moved_bytes:
            return
        link = self._links.get(peer)
        if link is None or link.incarnation != incarnation:
            link = LinkReport(peer=peer, incarnation=incarnation, transport=report.transport)
        fixed_s = report.exposed_s
        if link.imports:
            fixed_s = link.fixed_s + SMOOTHING * (fixed_s - link.fixed_s)
        link = replace(link, fixed_s=fixed_s, imports=link.imports + 1)
        if report.wire_format == EXACT:
            if _tells_rate(report, link.bytes_per_s):
                link = replace(link, bytes_per_s=_rate(link.bytes_per_s, report, first=not self._is_rated(link)))
                self._rated[peer] = incarnation
        elif _tells_rate(report, link.rounded_bytes_per_s):
            before = link.rounded_bytes_per_s
            link = replace(link, rounded_bytes_per_s=_rate(before, report, first=not before))
        self._put(link)

    def _is_rated(self, link: LinkReport) -> bool:
        return self._rated.get(link.peer) == link.incarnation

    def news_s(self, peer: WorkerId, incarnation: Incarnation) -> float | None:
        """Return how long a short message of this life of a worker takes to come; None where nobody has measured it."""
        link = self.known(peer, incarnation)
        return link.call_s / 2 if link is not None and link.call_s else None

    def blocks_in_flight(self, peer: WorkerId) -> int:
        """Return how many blocks an import from ``peer`` asks for at a time; the setting wins over measurements."""
        return self._in_flight(self._links.get(peer))

    def reports(self) -> tuple[LinkReport, ...]:
        """Return every entry."""
        return tuple(self._links.values())

    def _in_flight(self, report: LinkReport | None) -> int:
        return self._settings.blocks_in_flight or blocks_in_flight(report, self._block_bytes)

    def _put(self, entry: LinkReport) -> None:
        self._links.pop(entry.peer, None)
        self._links[entry.peer] = entry
        while len(self._links) > MOST_LINKS:
            oldest = next(iter(self._links))
            del self._links[oldest]
            self._rated.pop(oldest, None)


def _tells_rate(report: HandoffReport, before: float) -> bool:
    return report.rated_s > 0.0 and (report.moved_bytes >= TELLING_BYTES or not before)


def _rate(before: float, report: HandoffReport, *, first: bool) -> float:
    """Return the blocks' bytes a second after one more import; ``first``: ``before`` was no more than foreseen."""
    shown = report.exact_bytes / report.rated_s
    return shown if first else max(before * FORGETTING, shown)
