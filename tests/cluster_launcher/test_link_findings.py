"""What `baton status` and `baton doctor` say of links, of views that are made up."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from cluster_core.errors import PartUnavailable
from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.links import LinkReport
from cluster_core.workers import WorkerLoad
from cluster_launcher import link_findings as findings
from cluster_launcher.findings import Verdict
from cluster_launcher.state_file import RunningCluster
from cluster_launcher.status_command import status_json
from cluster_rpc.answers import ClusterView, WorkerView

SLOW = {"lane": "tcp", "warning": "blocks go by tcp where shared memory was expected", "cure": "share memory"}


def link(peer: str, **changes: Any) -> LinkReport:
    values: dict[str, Any] = {"lane": "cma", "large_in_bytes_per_s": 5e9, "bytes_per_s": 4e9, "blocks_in_flight": 64}
    return LinkReport(peer=WorkerId(peer), incarnation=Incarnation(1), transport="ucx", **(values | changes))


def worker(name: str, *links: LinkReport, state: str = "ready", transport: str = "ucx") -> WorkerView:
    return WorkerView(
        worker_id=WorkerId(name),
        incarnation=Incarnation(1),
        role=Role(name.partition("-")[0]),
        address="127.0.0.1:1",
        transport=transport,
        state=state,
        load=WorkerLoad(links=links),
        pid=1,
    )


def view(*workers: WorkerView) -> ClusterView:
    return ClusterView(
        workers=workers, mode="SERVING", model="demo", live_requests=0, queued_requests=0, directory_url=""
    )


def written(cluster: ClusterView) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(findings.links_table(cluster))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_links_of_handovers_come_first_and_the_slow_ones_before_the_others() -> None:
    cluster = view(
        worker("prefill-0", link("decode-0")),
        worker("decode-0", link("prefill-0"), link("decode-1"), link("gone-0")),
        worker("decode-1", link("prefill-0", **SLOW)),
    )
    lines = written(cluster).splitlines()
    assert lines[0].split()[:4] == ["blocks", "from", "to", "by"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["prefill-0", "decode-1", "tcp"],
        ["prefill-0", "decode-0", "cma"],
        ["decode-0", "prefill-0", "cma"],
        ["decode-1", "decode-0", "cma"],
    ]


def test_a_large_cluster_does_not_fill_the_screen() -> None:
    prefill = [worker(f"prefill-{number}") for number in range(30)]
    cluster = view(*prefill, worker("decode-0", *(link(each.worker_id) for each in prefill)))
    lines = written(cluster).splitlines()
    assert len(lines) == findings.SHOWN_LINKS + 2
    assert "and 18 more" in lines[-1]


def test_a_link_that_rounds_shows_how_fast_its_handovers_are() -> None:
    rounding = link("prefill-0", imports=3, bytes_per_s=1e9, rounded_bytes_per_s=2.5e9)
    cluster = view(worker("prefill-0"), worker("decode-0", rounding))
    assert "3 at 2.50 GB/s" in written(cluster)


def test_a_cluster_without_links_has_no_table() -> None:
    assert findings.links_table(view(worker("decode-0"))) is None


def test_equal_warnings_are_one_line_with_their_cure_in_status_too() -> None:
    cluster = view(
        worker("prefill-0"),
        worker("decode-0", link("prefill-0", **SLOW)),
        worker("decode-1", link("prefill-0", **SLOW), link("decode-0")),
    )
    ok, slow = findings.link_findings(cluster)
    assert (ok.verdict, ok.found) == (Verdict.OK, "1 by cma")
    assert slow.verdict is Verdict.WARN
    assert slow.found.startswith("prefill-0 to decode-0 and 1 more: blocks go by tcp")
    assert slow.cure == "share memory"
    assert status_json("here", cluster)["warnings"] == [slow.as_json()]
    assert status_json("here", cluster)["workers"][1]["links"][0]["lane"] == "tcp"


def test_pools_that_move_blocks_differently_and_refused_workers_are_told() -> None:
    refused = "refused: layout.block_size_tokens is 32, the router has 16"
    cluster = view(worker("prefill-0", transport="nixl"), worker("decode-0"), worker("decode-1", state=refused))
    pools, stranger = findings.link_findings(cluster)
    assert "prefill workers move blocks by nixl, decode workers by ucx" in pools.found
    assert (stranger.part, stranger.found) == ("decode-1", refused)
    assert pools.cure
    assert stranger.cure


def test_the_doctor_asks_the_clusters_that_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(address: str) -> ClusterView:
        if address == "here:1":
            leaking = replace(worker("prefill-0"), load=WorkerLoad(orphaned_holds=1))
            return view(leaking, worker("decode-0", link("prefill-0", **SLOW)))
        message = "nobody answers"
        raise PartUnavailable(message)

    monkeypatch.setattr(findings, "_view", ask)
    running = [
        RunningCluster(
            name=name, address=f"{name}:1", pid=1, process_started=0.0, model="", directory_url="", configuration=""
        )
        for name in ("here", "there")
    ]
    slow, orphans, silent = findings.cluster_links(running)
    assert slow.part == "slow link"
    assert (orphans.part, orphans.verdict) == ("prefill-0", Verdict.WARN)
    assert "1 block was held by nobody" in orphans.found
    assert (silent.part, silent.cure) == ("there", "nobody answers")
