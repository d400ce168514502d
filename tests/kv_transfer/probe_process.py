"""The exporter of a measurement in a process of its own, its stream on standard input and output.

Arguments: UCX_TLS, and a transport's name unless it is UCX.

Messages are pickled between these two processes of one test; nothing of Baton does that.
"""

import asyncio
import os
import pickle
import struct
import sys
from collections.abc import AsyncIterator

from cluster_core.links import ProbeQuestion
from kv_transfer.link_probe import LinkProbe
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import make_transport
from tests.kv_transfer.probes import parts_of


def write(message: object) -> None:
    data = pickle.dumps(message)
    sys.stdout.buffer.write(struct.pack("<I", len(data)) + data)
    sys.stdout.buffer.flush()


async def questions() -> AsyncIterator[ProbeQuestion]:
    loop = asyncio.get_running_loop()
    while size := await loop.run_in_executor(None, sys.stdin.buffer.read, 4):
        yield pickle.loads(sys.stdin.buffer.read(*struct.unpack("<I", size)))  # noqa: S301  # from our own parent


async def main(ucx_tls: str, transport_name: str = "ucx") -> None:
    settings = TransferSettings(transport=transport_name, ucx_tls=ucx_tls)
    transport = make_transport(settings)
    await transport.start()
    parts = parts_of("prefill-0", transport, settings)
    write(parts.incarnation)
    async for answer in LinkProbe(parts).answer(questions()):
        write(answer)
    os._exit(0)  # a thread still reads the input


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
