"""What a stranger hears of a server's health."""

import asyncio
import socket

from cluster_rpc.health_check import is_serving
from cluster_rpc.limits import PUBLIC
from cluster_rpc.server import RpcServer

PATIENCE_S = 20.0


async def heard_of(address: str, timeout_s: float = PATIENCE_S) -> bool:
    return await asyncio.to_thread(is_serving, address, timeout_s)


async def test_it_is_serving_while_it_says_so() -> None:
    server = RpcServer(PUBLIC)
    address = await server.start("127.0.0.1", 0)
    assert await heard_of(address)
    await server.set_serving(serving=False)
    assert not await heard_of(address)
    await server.set_serving(serving=True)
    assert await heard_of(address)
    await server.close()
    assert not await heard_of(address)


async def test_one_that_accepts_and_is_silent_is_not_serving() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        assert not await heard_of(f"{host}:{port}", 0.05)
