"""What is said of the ways between workers: a table, and a finding for each kind of slow or impossible way."""

import asyncio
from collections import Counter
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from cluster_core.errors import BatonError
from cluster_core.identity import Role
from cluster_core.links import LinkReport
from cluster_launcher.findings import Finding, ok, warn
from cluster_launcher.hold_findings import hold_findings
from cluster_launcher.reach import reach
from cluster_launcher.state_file import RunningCluster
from cluster_launcher.timeline import duration
from cluster_rpc.answers import ClusterView, WorkerView

SHOWN_LINKS = 12
_REFUSED = "refused: "

Link = tuple[WorkerView, LinkReport]
"""The worker that takes blocks, and what it knows of the way from another."""


def links_of(view: ClusterView) -> list[Link]:
    """Return the links between the workers of today, those of hand-overs first, and of these the slow ones."""
    here = {(worker.worker_id, worker.incarnation): worker for worker in view.workers}
    links = [
        (worker, link) for worker in view.workers for link in worker.load.links if (link.peer, link.incarnation) in here
    ]

    def place(link: Link) -> tuple[bool, bool, str, str]:
        importer, report = link
        exporter = here[report.peer, report.incarnation]
        hands_over = exporter.role is Role.PREFILL and importer.role is Role.DECODE
        return not hands_over, not report.warning, report.peer, importer.worker_id

    return sorted(links, key=place)


def links_table(view: ClusterView) -> Table | None:
    """Draw one line a link; None where none was measured."""
    links = links_of(view)
    if not links:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("blocks from", "to", "by"):
        table.add_column(name, no_wrap=True)
    for name in ("round trip", "4 KiB, 1 MiB", "imports"):
        table.add_column(name, justify="right", no_wrap=True)
    for importer, link in links[:SHOWN_LINKS]:
        table.add_row(
            link.peer,
            importer.worker_id,
            Text(link.lane or link.transport, style="yellow" if link.warning else ""),
            duration(link.round_trip_s),
            f"{link.small_in_bytes_per_s / 1e9:.2f}, {_rate(link.large_in_bytes_per_s)}",
            f"{link.imports} at {_rate(link.rounded_bytes_per_s or link.bytes_per_s)}" if link.imports else "-",
        )
    if len(links) > SHOWN_LINKS:
        table.add_row(f"and {len(links) - SHOWN_LINKS} more: --json has them all")
    return table


def link_findings(view: ClusterView) -> Iterator[Finding]:
    """Yield a finding for what is as it should be, and one for each thing that is not, with its cure."""
    links = links_of(view)
    good = Counter(link.lane or link.transport for _, link in links if not link.warning)
    if good:
        yield ok("links", "; ".join(f"{count} by {lane}" for lane, count in good.most_common()))
    slow: dict[tuple[str, str], list[str]] = {}
    for importer, link in links:
        if link.warning:
            slow.setdefault((link.warning, link.cure), []).append(f"{link.peer} to {importer.worker_id}")
    for (warning, cure), names in slow.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield warn("slow link", f"{names[0]}{more}: {warning}", cure)
    yield from _without_partner(view)
    for worker in view.workers:
        if worker.state.startswith(_REFUSED):
            yield warn(
                worker.worker_id, worker.state, "give all workers and the router one configuration, then restart it"
            )


def cluster_links(clusters: list[RunningCluster]) -> Iterator[Finding]:
    """Yield the findings of every cluster that runs here."""
    for cluster in clusters:
        try:
            view = asyncio.run(_view(cluster.address))
        except BatonError as error:
            yield warn(cluster.name, f"it runs (pid {cluster.pid}), but does not answer", str(error))
        else:
            yield from link_findings(view)
            yield from hold_findings(view)


async def _view(address: str) -> ClusterView:
    async with reach(address) as (_, view):
        return view


def _without_partner(view: ClusterView) -> Iterator[Finding]:
    """Yield a warning where prefill and decode workers move blocks by different transports: they are never paired."""
    ready = [worker for worker in view.workers if worker.state == "ready"]
    prefill, decode = ({worker.transport for worker in ready if worker.role is role} for role in Role)
    if prefill and decode and not prefill & decode:
        found = f"prefill workers move blocks by {', '.join(sorted(prefill))}, decode workers by "
        cure = "give both the same [transfer] transport; until then decode workers read prompts themselves"
        yield warn("links", found + ", ".join(sorted(decode)), cure)


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.2f} GB/s"
