"""When a cluster may be called ready: when its router answers strangers, soon."""

import asyncio
from collections.abc import Callable

from cluster_core.errors import PartUnavailable
from cluster_rpc.health_check import is_serving

SOON_S = 1.0
"""How quickly the router must answer once: on a machine that is busy with the start it may take many seconds."""
_PAUSE_S = 0.1

Ask = Callable[[str, float], bool]
"""Asks whoever serves at an address for its health, and waits for the answer so many seconds at most."""


async def wait_until_it_answers(address: str, patience_s: float, ask: Ask = is_serving) -> None:
    """Return when the router at ``address``, which runs on this event loop, has answered within `SOON_S`.

    It is asked from a thread, on a new connection each time: a client on the router's own loop is as late as the router
    and finds nothing wrong. Raises `PartUnavailable` when ``patience_s`` seconds have passed.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + patience_s
    while not await asyncio.to_thread(ask, address, SOON_S):
        if loop.time() >= give_up_at:
            message = (
                f"router: it listens at {address}, and has not once answered within {SOON_S:g} s for {patience_s:g} s: "
                "this machine is overloaded; give it less to do, or raise cluster.start_timeout_s"
            )
            raise PartUnavailable(message)
        await asyncio.sleep(_PAUSE_S)
