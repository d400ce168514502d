"""`baton status`: both pools, and the ways between their workers, at a glance."""

import dataclasses
from typing import Any

from rich.table import Table
from rich.text import Text

from block_directory.redis_answer import without_password
from cluster_core.identity import Role
from cluster_launcher.exit_codes import ExitCode
from cluster_launcher.findings import Finding, Verdict
from cluster_launcher.hold_findings import hold_findings
from cluster_launcher.link_findings import link_findings, links_table
from cluster_launcher.output import Output
from cluster_launcher.reach import reach
from cluster_launcher.timeline import duration
from cluster_rpc.answers import ClusterView, WorkerView

_STATE_STYLES = {"ready": "green", "draining": "yellow", "lost": "bold red"}


async def status(address: str, output: Output) -> ExitCode:
    """Print the cluster's state. Raises `ClusterUnreachable`."""
    async with reach(address) as (_, view):
        output.facts(status_json(address, view))
        mode = f"[green]{view.mode}[/]" if view.mode == "SERVING" else f"[bold yellow]{view.mode}[/]"
        output.console.print(
            f"{view.model} at [bold]{address}[/]: {mode}, {view.live_requests} live requests, "
            f"{view.queued_requests} queued"
        )
        if view.mode != "SERVING":
            output.console.print("  the directory is out of reach; requests are served from the router's memory")
        output.console.print(pools_table(view))
        links = links_table(view)
        if links is not None:
            output.console.print(links)
        for finding in _warnings(view):
            output.console.print(Text(f"! {finding.part}: {finding.found}", style="yellow"))
            output.console.print(f"  cure: {finding.cure}", markup=False)
    return ExitCode.OK


_GUESSES = ("tokens/step", "guessed right")
"""What speculative decoding brought since the worker's start."""


def status_json(address: str, view: ClusterView) -> dict[str, Any]:
    """Return the cluster's state as plain values."""
    return {
        "address": address,
        "mode": view.mode,
        "model": view.model,
        "live_requests": view.live_requests,
        "queued_requests": view.queued_requests,
        "directory_url": without_password(view.directory_url),
        "late_tokens": view.late_tokens,
        "workers": [_worker_json(worker) for worker in view.workers],
        "warnings": [finding.as_json() for finding in _warnings(view)],
    }


def _warnings(view: ClusterView) -> list[Finding]:
    findings = (*link_findings(view), *hold_findings(view))
    return [finding for finding in findings if finding.verdict is not Verdict.OK]


def pools_table(view: ClusterView) -> Table:
    """Draw one line a worker, the prefill pool first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("worker", "role", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("queue", "running", "held / cached / all blocks", "preempted", "step", *_GUESSES, "pid"):
        table.add_column(name, justify="right", no_wrap=True)
    for worker in sorted(view.workers, key=lambda worker: (worker.role is Role.DECODE, worker.worker_id)):
        load = worker.load
        table.add_row(
            worker.worker_id,
            worker.role.value,
            Text(worker.state, style=_STATE_STYLES.get(worker.state, "")),
            str(load.waiting_requests),
            str(load.running_requests),
            f"{load.held_blocks} / {load.cached_blocks} / {load.total_blocks}",
            str(load.preemptions),
            duration(load.decode_step_s) if load.decode_step_s else "-",
            f"{load.written_tokens / load.answer_steps:.2f}" if load.answer_steps else "-",
            f"{load.accepted_guesses / load.guessed_tokens:.0%}" if load.guessed_tokens else "-",
            str(worker.pid),
        )
    return table


def _worker_json(worker: WorkerView) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "incarnation": worker.incarnation,
        "role": worker.role.value,
        "state": worker.state,
        "address": worker.address,
        "transport": worker.transport,
        "pid": worker.pid,
        **dataclasses.asdict(worker.load),
    }
