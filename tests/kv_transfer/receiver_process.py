"""A worker that takes blocks by the host's way, in a process of its own, and stops in the midst of a copy.

Prints its transport address, then obeys one line, ``FROM_ADDRESS_HEX TAG ROWS ROW_BYTES``: it awaits a lot of rows and,
when the first of them have landed, says how many and does nothing more, as if it had been stopped there.
"""

import asyncio
import sys
from collections.abc import Sequence

import numpy as np

from kv_transfer.host_transport import make_host_transport
from kv_transfer.lots import Lot


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def stop(places: Sequence[int]) -> None:
    say(str(len(places)))
    sys.stdin.readline()


async def main() -> None:
    transport = make_host_transport()
    await transport.start()
    say(transport.address.hex())
    sender, tag, count, row_bytes = sys.stdin.readline().split()
    rows = np.zeros((int(count), int(row_bytes)), np.uint8)
    peer = await transport.connect(bytes.fromhex(sender))
    lot = Lot(rows=rows, indices=range(len(rows)), tag=int(tag), numbers=range(len(rows)))
    await peer.receive_lot(lot, stop)


if __name__ == "__main__":
    asyncio.run(main())
