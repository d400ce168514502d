"""The other end of the transport contract in a process of its own.

Prints its transport address, then obeys lines of ``TO_ADDRESS_HEX TAG SIZE``: send that pattern. Ends with its input.
"""

import asyncio
import os
import sys

from kv_transfer.settings import TransferSettings
from kv_transfer.transport import make_transport
from tests.kv_transfer.patterns import pattern


async def main() -> None:
    transport = make_transport(TransferSettings(ucx_keepalive_s=0.2))
    await transport.start()
    sys.stdout.write(transport.address.hex() + "\n")
    sys.stdout.flush()
    sends: set[asyncio.Future[None]] = set()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        address, tag, size = line.split()
        peer = await transport.connect(bytes.fromhex(address))
        send = peer.send(pattern(int(tag), int(size)), int(tag))
        sends.add(send)
        send.add_done_callback(sends.discard)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
