"""A router, two prefill and two decode workers, each a process of its own with failpoints; they serve hashes.

Life of a grid: the directory's server and all five processes start together; a cell kills at most one of them, which is
started again under its old name before the next cell; at the end all are stopped by their handles.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Self

from block_directory.embedded import EmbeddedServer
from block_directory.settings import DirectorySettings
from cluster_core.sampling import Sampling
from cluster_core.workers import WorkerLoad
from cluster_rpc.channels import open_channel
from cluster_rpc.client import BatonClient
from cluster_rpc.limits import INTERNAL
from cluster_rpc.v1 import worker_pb2, worker_pb2_grpc
from cluster_rpc.worker_messages import load_from_proto
from inference_engine.hash_model import HashModel, hash_answer, make_hash_model
from inference_engine.settings import EngineSettings, HashModelSettings, ModelSettings
from tests.cluster_harness import write_config
from tests.failure_grid.armed_process import ArmedProcess

SHAPE = HashModelSettings(vocab_size=4096, eos_tokens=0, layers=3)
"""No answer ends before its last token, so that every stage is reached."""

CHUNK_TOKENS = 16
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
ROUTER = "router"
LOOK_S = 0.01
READY_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 2.0


class GridCluster:
    """The processes by name. Used as an async context manager."""

    def __init__(self) -> None:
        self.processes: dict[str, ArmedProcess] = {}
        self.model: HashModel = make_hash_model(ModelSettings(implementation="hash"), SHAPE, EngineSettings())
        self._folder = Path(tempfile.mkdtemp(prefix="baton-grid-"))
        self._server = EmbeddedServer(DirectorySettings())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything, or leave nothing behind."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything, as an operator does."""
        stopping = (asyncio.to_thread(process.stop) for process in self.processes.values())
        failures = [error for error in await asyncio.gather(*stopping, return_exceptions=True) if error is not None]
        self._server.stop()
        shutil.rmtree(self._folder)
        assert not failures, failures

    async def _start(self) -> None:
        config = write_config(
            self._folder,
            {
                "cluster": {"name": "grid", "prefill": 2, "decode": 2},
                "model": {"implementation": "hash"},
                "hash_model": {"vocab_size": SHAPE.vocab_size, "eos_tokens": 0, "layers": SHAPE.layers},
                "router": {"port": 0, "placement": "split", "watch_period_s": 0.05},
                "prefill": {"total_blocks": 256, "token_budget": CHUNK_TOKENS, "chunk_tokens": CHUNK_TOKENS},
                "decode": {"total_blocks": 256},
            },
        )
        url = await asyncio.to_thread(self._server.start)
        options = (str(config), "--directory-url", url)
        for name in WORKERS:
            role = name.partition("-")[0]
            command = (f"{role}_worker", *options, "--worker-id", name)
            self.processes[name] = ArmedProcess(name, command, self._folder)
        self.processes[ROUTER] = ArmedProcess(ROUTER, ("router", *options), self._folder)
        await self.start_again()

    async def start_again(self) -> None:
        """Start whoever does not run, and wait until everybody serves and the router knows it."""
        dead = [process for process in self.processes.values() if not process.alive]
        for process in dead:
            process.start()
        await asyncio.gather(*(asyncio.to_thread(process.until_ready) for process in dead))
        lives = {name: self.processes[name].ready["incarnation"] for name in WORKERS}
        async with self.client() as client, asyncio.timeout(READY_TIMEOUT_S):
            while True:
                view = await client.list_workers()
                ready = {each.worker_id: each.incarnation for each in view.workers if each.state == "ready"}
                if ready == lives:
                    return
                await asyncio.sleep(LOOK_S)

    def client(self) -> BatonClient:
        """Return a client of the router that runs now."""
        return BatonClient(self.processes[ROUTER].address)

    def answer(self, prompt: list[int], max_tokens: int) -> list[int]:
        """Return what the oracle answers, greedily."""
        return hash_answer(
            self.model,
            prompt,
            Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=max_tokens, stop_token_ids=frozenset()),
        )

    async def until_free(self, within_s: float) -> str:
        """Wait until nobody who lives holds anything of a request; return what is still held when the time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while held := await self.held():
            if loop.time() > deadline:
                return held
            await asyncio.sleep(LOOK_S)
        return ""

    async def held(self) -> str:
        """Say what is held, by whom; nothing when all is free."""
        workers = [name for name in WORKERS if self.processes[name].alive]
        loads = await asyncio.gather(*(load_of(self.processes[name].address) for name in workers))
        told = [f"{name}: {held_by(load)}" for name, load in zip(workers, loads, strict=True) if held_by(load)]
        if self.processes[ROUTER].alive:
            async with self.client() as client:
                view = await client.list_workers()
            if view.live_requests or view.queued_requests:
                told.append(f"router: {view.live_requests} live, {view.queued_requests} queued requests")
        return "; ".join(told)

    async def release(self) -> None:
        """Disarm everything and let go on who waits."""
        alive = [process for process in self.processes.values() if process.alive]
        await asyncio.gather(*(process.ask(do="release") for process in alive))


def held_by(load: WorkerLoad) -> str:
    """Say what a worker holds of requests; nothing when it holds nothing."""
    counts = {
        "blocks held": load.held_blocks,
        "orphaned holds": load.orphaned_holds,
        "running": load.running_requests,
        "waiting": load.waiting_requests,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


async def load_of(address: str) -> WorkerLoad:
    """Ask a worker itself for its load."""
    async with open_channel(address, INTERNAL) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        call = stub.Watch(worker_pb2.WatchRequest(period_s=1.0), timeout=CALL_TIMEOUT_S)
        try:
            return load_from_proto(await call.read())
        finally:
            call.cancel()
