"""A prefill worker's half in a process of its own: an exporter over UCX, its stream on standard input and output.

Arguments: how many tokens its prompt has, and how many of its blocks it seals before it stops for ever (-1: all).
Messages are pickled between these two processes of one test; nothing of Baton does that.
"""

import asyncio
import os
import pickle
import struct
import sys
from collections.abc import AsyncIterator

from cluster_core.handoff import ImporterMessage
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import make_transport
from tests.kv_transfer.fake_pool import ATTEMPT, REQUEST, FakePool, sealed_blocks
from tests.kv_transfer.handover import make_exporter

SEED = 5


def write(message: object) -> None:
    data = pickle.dumps(message)
    sys.stdout.buffer.write(struct.pack("<I", len(data)) + data)
    sys.stdout.buffer.flush()


async def messages() -> AsyncIterator[ImporterMessage]:
    loop = asyncio.get_running_loop()
    while size := await loop.run_in_executor(None, sys.stdin.buffer.read, 4):
        yield pickle.loads(sys.stdin.buffer.read(*struct.unpack("<I", size)))  # noqa: S301  # from our own parent


async def main(tokens: int, blocks: int) -> None:
    transport = make_transport(TransferSettings(ucx_keepalive_s=0.2))
    await transport.start()
    pool = FakePool(200, seed=SEED)
    exporter = make_exporter(transport, pool)
    export = exporter.open(REQUEST, ATTEMPT)
    sealed = sealed_blocks(tokens)
    if blocks < 0:
        export.seal(sealed)
        export.finish(42)
    else:
        export.seal(sealed[:blocks])
    async for message in exporter.serve(messages()):
        write(message)
    await transport.close()
    os._exit(0)  # a thread still reads the input


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
