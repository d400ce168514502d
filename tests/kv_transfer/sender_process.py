"""The other end of the transport contract in a process of its own.

Prints its transport address, then obeys lines of ``TO_ADDRESS_HEX TAG SIZE``: send that pattern; with ``NUMBERS``
(joined by commas) after it: send a lot of patterns. Ends with its input. Its argument names the transport.
"""

import asyncio
import os
import sys

from kv_transfer.loopback_transport import LoopbackNetwork
from kv_transfer.lots import Lot
from tests.kv_transfer.patterns import pattern, pattern_rows
from tests.kv_transfer.transport_sides import new_transport


async def main() -> None:
    transport = new_transport(sys.argv[1], LoopbackNetwork())
    await transport.start()
    sys.stdout.write(transport.address.hex() + "\n")
    sys.stdout.flush()
    sends: set[asyncio.Future[None]] = set()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        address, tag, size, *listed = line.split()
        peer = await transport.connect(bytes.fromhex(address))
        if listed:
            numbers = [int(number) for number in listed[0].split(",")]
            rows = pattern_rows(int(tag), int(size), max(numbers) + 1)
            send = peer.send_lot(Lot(rows=rows, indices=numbers, tag=int(tag), numbers=numbers))
        else:
            send = peer.send(pattern(int(tag), int(size)), int(tag))
        sends.add(send)
        send.add_done_callback(sends.discard)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
