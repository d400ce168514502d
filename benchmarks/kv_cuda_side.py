"""The side of `benchmarks.kv_cuda` that has the blocks.

``python -m benchmarks.kv_cuda_side DEVICE POOL_BYTES`` prints the addresses of its transports, in JSON and hexadecimal
digits, then obeys lines of JSON as `benchmarks.kv_sides` does: `Lots` and `Digests`.
"""

import asyncio
import json
import sys
from dataclasses import replace

from benchmarks.block_lots import places
from benchmarks.device_pool import LotDigests, device_pool
from benchmarks.kv_orders import Digests, Lots, order_from, transfer_settings
from benchmarks.lot_sides import LotSender
from benchmarks.peer_process import orders
from kv_transfer.transport import Transport, make_transport
from kv_transfer.ucx_transport import UcxTransport

BATON, UCX = "baton", "ucx"
"""What orders call the transports: what Baton chooses between two workers of one device, and UCX alone."""


def _answer(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def started_transports(device: str) -> dict[str, Transport]:
    """Start both; to be called before the pool is made, as a worker does."""
    settings = replace(transfer_settings(""), gpu_copies=True)
    transports: dict[str, Transport] = {BATON: make_transport(settings, device=device), UCX: UcxTransport(settings)}
    for transport in transports.values():
        await transport.start()
    return transports


async def main(device: str, pool_bytes: int) -> None:
    """Obey until the input ends or a signal comes."""
    transports = await started_transports(device)
    pool = device_pool(pool_bytes, device)
    lots, digests = LotSender(pool, transports, _answer), LotDigests(pool)
    _answer(json.dumps({name: transport.address.hex() for name, transport in transports.items()}))
    async for line in orders():
        order = order_from(line)
        if isinstance(order, Lots):
            await lots.send(order)
        elif isinstance(order, Digests):
            _answer("ready")
            numbers = range(order.first, order.first + order.number)
            lists = [places(order.kind, number, pool_bytes)[0].tolist() for number in numbers]
            _answer(json.dumps([digests.seconds(order.kind, sources) for sources in lists]))
    for transport in transports.values():
        await transport.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
