"""A prefill and a decode worker that answer at once: real servers, registered in a real directory, no engine.

``python -m benchmarks.instant_workers MODEL_FOLDER DIRECTORY_URL`` prints the addresses of both and runs until
its input ends or it is interrupted. What a request through the router takes then is the router's time and gRPC's.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from benchmarks.peer_process import orders
from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from cluster_core.identity import Role, WorkerId, new_incarnation
from cluster_core.workers import WorkerLoad, WorkerRecord
from cluster_rpc.limits import INTERNAL
from cluster_rpc.server import DECODE, PREFILL, WORKER, RpcServer
from cluster_rpc.v1 import worker_pb2 as pb
from cluster_rpc.v1 import worker_pb2_grpc
from cluster_rpc.worker_messages import status_to_proto
from inference_engine.model_folder import layout_of, open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings

BLOCKS = 65_536
LEASE_S = 3600.0
TOKEN = 300
"""The token that every answer consists of; no worker ends an answer before ``max_tokens``."""


class InstantWorker(
    worker_pb2_grpc.WorkerServiceServicer, worker_pb2_grpc.PrefillServiceServicer, worker_pb2_grpc.DecodeServiceServicer
):
    """A worker of either role. What it does not define is refused as unimplemented."""

    def __init__(self, role: Role, folder: Path) -> None:
        self._role = role
        self._folder = folder
        self._id = WorkerId(f"{role.value}-0")
        self._incarnation = new_incarnation()
        self._server = RpcServer(INTERNAL)

    async def start(self) -> WorkerRecord:
        """Serve; return the registration."""
        self._server.add(WORKER, self)
        self._server.add(PREFILL if self._role is Role.PREFILL else DECODE, self)
        address = await self._server.start("127.0.0.1", 0)
        folder = open_model_folder(ModelSettings(path=str(self._folder)))
        return WorkerRecord(
            worker_id=self._id,
            incarnation=self._incarnation,
            role=self._role,
            address=address,
            transport="none",
            model=folder.identity,
            layout=layout_of(folder.config, EngineSettings(dtype="bfloat16")),
            total_blocks=BLOCKS,
            pid=os.getpid(),
        )

    async def close(self) -> None:
        """End all calls."""
        await self._server.close()

    async def Watch(self, request: pb.WatchRequest, _context: Any) -> AsyncIterator[pb.WorkerStatus]:  # noqa: N802  # named by gRPC
        """Say every period that nothing is to be done."""
        while True:
            yield status_to_proto(self._id, self._incarnation, WorkerLoad(total_blocks=BLOCKS))
            await asyncio.sleep(request.period_s)

    async def Prefill(self, _request: pb.PrefillRequest, _context: Any) -> AsyncIterator[pb.PrefillEvent]:  # noqa: N802  # named by gRPC
        """Give the first token."""
        yield pb.PrefillEvent(started=pb.PrefillStarted())
        yield pb.PrefillEvent(first_token=pb.FirstToken(token_id=TOKEN))

    async def Decode(self, request: pb.DecodeRequest, _context: Any) -> AsyncIterator[pb.DecodeEvent]:  # noqa: N802  # named by gRPC
        """Give the tokens: after a hand-over all but the first, in one message."""
        handed_over = request.HasField("source")
        yield pb.DecodeEvent(started=pb.DecodeStarted())
        if handed_over:
            yield pb.DecodeEvent(handoff=pb.HandoffReport(moved_blocks=1, moved_bytes=1, transport="none"))
        offset = int(handed_over)
        tokens = [TOKEN] * (request.sampling.max_tokens - offset)
        if tokens:
            yield pb.DecodeEvent(tokens=pb.Tokens(offset=offset, token_ids=tokens))
        yield pb.DecodeEvent(finished=pb.DecodeFinished(finish_reason="length"))


async def main(folder: Path, directory_url: str) -> None:
    """Serve both workers."""
    directory = RedisDirectory(directory_url, DirectorySettings())
    workers = [InstantWorker(role, folder) for role in (Role.PREFILL, Role.DECODE)]
    records = [await worker.start() for worker in workers]
    for record in records:
        await directory.register(record, LEASE_S)
    sys.stdout.write(" ".join(record.address for record in records) + "\n")
    sys.stdout.flush()
    async for _ in orders():
        pass
    for worker in workers:
        await worker.close()
    await directory.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
