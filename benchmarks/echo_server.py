"""The bare peer of the router: a `grpc.aio` server that answers a request with two messages, and knows nothing else.

``python -m benchmarks.echo_server FIRST_HEX LAST_HEX`` prints its address and runs until its
input ends or it is interrupted.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from benchmarks.peer_process import orders

METHOD = "/benchmarks.Echo/Echo"


async def main(first: bytes, last: bytes) -> None:
    """Serve: bytes in, ``first`` and ``last`` out, without protobuf on this side."""

    async def echo(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield first
        yield last

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(echo)
    service, method = METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"127.0.0.1:{port}\n")
    sys.stdout.flush()
    async for _ in orders():
        pass
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main(*(bytes.fromhex(argument) for argument in sys.argv[1:3])))
