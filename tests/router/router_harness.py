"""A router over fake workers: real gRPC on both sides, no directory and no model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import tokenizers
from tokenizers import models, pre_tokenizers

from block_directory.index import PrefixIndex
from cluster_core.identity import Role
from cluster_core.logprobs import TokenLogprobs
from cluster_rpc.errors import from_rpc_error
from cluster_rpc.limits import PUBLIC
from cluster_rpc.logprob_messages import input_told, output_told
from cluster_rpc.server import CLUSTER, GENERATION, RpcServer
from cluster_rpc.v1 import cluster_pb2_grpc, generation_pb2, generation_pb2_grpc
from router.cluster_service import ClusterService, Overview, PoolController
from router.generation_service import GenerationService, Serving
from router.membership import Expected
from router.prompt import RequestPreparer
from router.settings import RouterSettings
from router.text_stream import TextStream
from router.tokenizer import Tokenizer
from router.wiring import Core, build_core
from tests.router.fake_workers import LAYOUT, MODEL, VOCABULARY, FakeWorker

PATIENCE_S = 10.0
STOP_ID = 9

SETTINGS = RouterSettings(port=0, watch_period_s=0.05, watch_silence_periods=100, worker_wait_s=5.0, placement="split")


@dataclass
class Answer:
    """What a client got."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    complete: generation_pb2.GenerateComplete | None = None
    chunks: int = 0
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)


@dataclass
class RouterHarness:
    """The router's parts, a client's stubs, and the workers that were added."""

    core: Core
    service: GenerationService
    generation: Any
    cluster: Any
    index: PrefixIndex
    workers: list[FakeWorker] = field(default_factory=list)
    gone: list[FakeWorker] = field(default_factory=list)
    degraded: bool = False

    async def add(self, worker_id: str, **fields: Any) -> FakeWorker:
        """Start a worker named like its role and register it; wait until it is ready."""
        role = Role.PREFILL if worker_id.startswith("prefill") else Role.DECODE
        worker = FakeWorker(worker_id=worker_id, role=role, **fields)
        await worker.start()
        self.workers.append(worker)
        self.register()
        await self.until(lambda: self.core.membership.is_heard(worker.incarnation))
        return worker

    def register(self) -> None:
        """Tell the router of the workers, as the directory would."""
        records = [worker.record for worker in self.workers if worker.record]
        for record in records:
            self.index.begin(record.worker_id, record.incarnation)
        self.core.membership.on_workers(records)

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.001)

    def call(self, prompt: Sequence[int], max_tokens: int, **fields: Any) -> Any:
        """Start a request; ``fields`` are of the request, or of its sampling where they are not."""
        known = generation_pb2.SamplingParams.DESCRIPTOR.fields_by_name
        sampling = {"temperature": 0.0, **{key: fields.pop(key) for key in list(fields) if key in known}}
        timeout = fields.pop("timeout", PATIENCE_S)
        request = generation_pb2.GenerateRequest(
            tokenized=generation_pb2.TokenizedInput(input_ids=prompt),
            sampling_params=generation_pb2.SamplingParams(max_tokens=max_tokens, **sampling),
            **fields,
        )
        return self.generation.Generate(request, timeout=timeout)

    async def generate(self, prompt: Sequence[int], max_tokens: int, **fields: Any) -> Answer:
        """Run a request to its end. Raises the `BatonError` it ended with."""
        (answer,) = await self.generate_all(prompt, max_tokens, **fields)
        return answer

    async def generate_all(self, prompt: Sequence[int], max_tokens: int, **fields: Any) -> list[Answer]:
        """Run a request for several answers to its end; ``n`` is how many."""
        return await collect(self.call(prompt, max_tokens, **fields), fields.get("n", 1))

    async def until_nothing_is_left(self) -> None:
        """Wait until no request leaves a trace: no call on a worker, no entry, no place, no leg."""
        core = self.core
        await self.until(lambda: not any(worker.live_calls for worker in [*self.workers, *self.gone]))
        await self.until(lambda: not (len(core.live) or core.admission.live or core.admission.queued))
        await self.until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().endswith(" leg")])
        assert len(core.ledger) == 0


async def collect(call: Any, choices: int = 1) -> list[Answer]:
    """Read a call to its end, checking that indices have no gap and that nothing follows a terminal message."""
    answers = [Answer() for _ in range(choices)]
    try:
        async for response in call:
            if response.HasField("complete"):
                got = answers[response.complete.index]
                assert got.complete is None, "a second terminal message"
                got.complete = response.complete
                got.text += response.complete.text
                continue
            chunk = response.chunk
            got = answers[chunk.index]
            assert got.complete is None, "a chunk after the terminal message"
            assert chunk.token_index == len(got.token_ids)
            if chunk.HasField("input_logprobs"):
                assert not any(answer.token_ids for answer in answers), "the prompt's logprobs come first"
                assert chunk.input_logprobs.token_index == len(got.prompt_logprobs)
                got.prompt_logprobs += input_told(chunk.input_logprobs)
            got.token_ids += chunk.token_ids
            got.logprobs += output_told(chunk.output_logprobs)
            got.text += chunk.text
            got.chunks += 1
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    assert all(answer.complete is not None for answer in answers), "the stream ended early"
    return answers


def word_tokenizer() -> Tokenizer:
    """Return a tokenizer whose token i is the word ``w<i>``."""
    words = {f"w{number}": number for number in range(VOCABULARY)}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106  # a word, no password
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend)


@asynccontextmanager
async def running_router(
    settings: RouterSettings = SETTINGS, pools: PoolController | None = None
) -> AsyncIterator[RouterHarness]:
    """Run a router without workers; close everything, and check that nothing is left."""
    index = PrefixIndex()
    core = build_core(settings, Expected(model=MODEL, layout=LAYOUT), index)
    tokenizer = word_tokenizer()
    preparer = RequestPreparer(tokenizer=tokenizer, model=MODEL, served_name="toy", eos_token_ids=frozenset({STOP_ID}))
    service = GenerationService(
        Serving(
            preparer=preparer,
            open_text=lambda options: TextStream(tokenizer, options),
            admission=core.admission,
            live=core.live,
            flow=core.flow,
        )
    )
    server = RpcServer(PUBLIC)
    server.add(GENERATION, service)
    harness: list[RouterHarness] = []
    overview = Overview(
        membership=core.membership,
        admission=core.admission,
        history=core.flow.history,
        served_name="toy",
        directory_url="redis://somewhere",
        degraded=lambda: harness[0].degraded,
        pools=pools,
    )
    server.add(CLUSTER, ClusterService(overview))
    address = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(address) as channel:
        running = RouterHarness(
            core=core,
            index=index,
            service=service,
            generation=generation_pb2_grpc.GenerationServiceStub(channel),  # type: ignore[no-untyped-call]  # generated
            cluster=cluster_pb2_grpc.ClusterServiceStub(channel),  # type: ignore[no-untyped-call]  # generated
        )
        harness.append(running)
        try:
            yield running
            await running.until_nothing_is_left()
        finally:
            await server.close()
            await core.membership.close()
            await core.channels.close()
            for worker in running.workers:
                await worker.crash()
