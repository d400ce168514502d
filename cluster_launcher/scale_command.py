"""`baton scale prefill=1 decode=3`: changes the pools of a running cluster."""

import asyncio
from collections.abc import Sequence

from cluster_core.errors import SettingsError
from cluster_core.identity import Role
from cluster_launcher.exit_codes import ExitCode
from cluster_launcher.output import Output
from cluster_launcher.reach import reach
from cluster_rpc.answers import ClusterView
from cluster_rpc.client import BatonClient

_LOOK_PERIOD_S = 0.5


def parse_pools(arguments: Sequence[str]) -> dict[Role, int]:
    """Read ``prefill=1 decode=3``. Raises `SettingsError` naming the argument."""
    pools: dict[Role, int] = {}
    for argument in arguments:
        name, _, count = argument.partition("=")
        if name not in {role.value for role in Role} or not count.isdecimal():
            message = f"{argument}: write prefill=N, decode=N, or both, such as `baton scale prefill=1 decode=3`"
            raise SettingsError(message)
        if Role(name) in pools:
            message = f"{argument}: {name} is given twice"
            raise SettingsError(message)
        pools[Role(name)] = int(count)
    return pools


async def scale(address: str, pools: dict[Role, int], output: Output) -> ExitCode:
    """Bring the pools to these sizes; a pool that is not named keeps its size."""
    async with reach(address) as (client, view):
        wanted = {role: pools.get(role, _meant_to_run(view, role)) for role in Role}
        progress = output.progress()
        with progress.part(f"prefill={wanted[Role.PREFILL]} decode={wanted[Role.DECODE]}") as tell:
            change = asyncio.ensure_future(client.set_pools(wanted[Role.PREFILL], wanted[Role.DECODE]))
            try:
                while not (await asyncio.wait([change], timeout=_LOOK_PERIOD_S))[0]:
                    tell(await _states(client))
                prefill, decode = change.result()
            finally:
                change.cancel()
        output.facts({"prefill": prefill, "decode": decode})
        output.console.print(f"running: {prefill} prefill, {decode} decode")
        return ExitCode.OK if (prefill, decode) == (wanted[Role.PREFILL], wanted[Role.DECODE]) else ExitCode.NOT_SO


def _meant_to_run(view: ClusterView, role: Role) -> int:
    """Count a pool as it is meant to be: a worker that is lost is being started again; one that drains is leaving."""
    return sum(1 for worker in view.workers if worker.role is role and worker.state != "draining")


async def _states(client: BatonClient) -> str:
    view = await client.list_workers()
    return " ".join(f"{worker.worker_id}:{worker.state}" for worker in view.workers)
