"""Scripted workers: real gRPC servers that speak the real protocol and compute a toy model.

The toy model's next token depends on the last token and its position, so that a lost, repeated or misplaced token
changes everything after it. Hooks stop a worker at any point: they may wait, raise a `BatonError`, or crash the worker.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from cluster_core.errors import BatonError
from cluster_core.identity import Role, WorkerId, new_incarnation
from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.sampling import choice_seed
from cluster_core.workers import WorkerLoad, WorkerRecord
from cluster_rpc.limits import INTERNAL
from cluster_rpc.server import DECODE, PREFILL, WORKER, RpcServer
from cluster_rpc.v1 import worker_pb2 as pb
from cluster_rpc.v1 import worker_pb2_grpc
from cluster_rpc.worker_messages import status_to_proto

VOCABULARY = 1000
LAYOUT = KvLayout(layers=2, kv_heads=2, head_dim=8, block_size_tokens=16, dtype="float32")
MODEL = ModelIdentity(name="toy", fingerprint="f00d", vocab_size=VOCABULARY, max_context_tokens=4096)

PIECE = 3
"""Tokens in one message of a prompt's logprobs."""

Hook = Callable[[int], Awaitable[object]]


async def nothing_happens(_: int) -> None:
    """Let the worker go on."""


def next_token(tokens: Sequence[int]) -> int:
    """Return what the toy model writes after ``tokens``. Never below 10, so that small ids are free for prompts."""
    return 10 + (31 * tokens[-1] + 17 * len(tokens)) % (VOCABULARY - 10)


def seeded_token(tokens: Sequence[int], seed: int) -> int:
    """Return what it draws with a seed; seed 0 stands for greedy."""
    return 10 + (next_token(tokens) - 10 + seed) % (VOCABULARY - 10)


def answer(prompt: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Return the first ``count`` tokens of the toy model's answer."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(seeded_token(tokens, seed))
    return tokens[len(prompt) :]


def told(tokens: Sequence[int], place: int) -> pb.TokenLogprobs:
    """Return the toy logprobs of ``tokens[place]``: they depend on all tokens before it."""
    logprob = -(1 + sum(tokens[:place]) % 64)
    return pb.TokenLogprobs(
        token_id=tokens[place], logprob=logprob, rank=2, top_token_ids=[7], top_logprobs=[logprob + 0.5]
    )


def seeds_of(request: pb.PrefillRequest | pb.DecodeRequest) -> list[int]:
    """Return the seeds of an order's choices, 0 where it is greedy."""
    sampling = request.sampling
    return [choice_seed(sampling.seed, i) if sampling.temperature else 0 for i in range(request.choices or 1)]


@dataclass(kw_only=True)
class FakeWorker(
    worker_pb2_grpc.WorkerServiceServicer,
    worker_pb2_grpc.PrefillServiceServicer,
    worker_pb2_grpc.DecodeServiceServicer,
):
    """A worker of either role. Change its fields at any time; `report` sends a new status."""

    worker_id: str
    role: Role
    total_blocks: int = 256
    layout: KvLayout = LAYOUT
    model: ModelIdentity = MODEL
    load: WorkerLoad = field(default_factory=WorkerLoad)
    cached_tokens: int = 0
    fetch_report: pb.FetchReport | None = None
    on_prefill: Hook = nothing_happens
    """Called with 0 before the prefill starts and with 1 before the first token."""
    on_token: Hook = nothing_happens
    """Called with the offset before each token of a decode leg."""
    export_over: asyncio.Event = field(default_factory=asyncio.Event)
    """A prefill worker's stream stays open until it is set, or its caller ends it."""
    before_start: Hook = nothing_happens
    """Called with 0 while an order of a decode leg waits for room."""
    before_handoff: Hook = nothing_happens
    """Called with 0 while a decode leg imports."""
    kept_blocks: int = 0
    """What a decode leg that fails in ``before_handoff`` or ``on_token`` says it has kept."""
    before_finish: Hook = nothing_happens
    tokens_per_event: int = 1
    skip_tokens: int = 0
    """So many tokens are left out of the next event, once."""
    orders: list[Any] = field(default_factory=list)
    cancelled: int = 0
    ended_choices: list[int] = field(default_factory=list)
    live_calls: int = 0
    watchers: int = 0
    watches: int = 0
    status_allowed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.incarnation = new_incarnation()
        self.status_allowed.set()
        self._status_changed = asyncio.Event()
        self._server = RpcServer(INTERNAL)
        self.record: WorkerRecord | None = None

    async def start(self, port: int = 0) -> WorkerRecord:
        self._server.add(WORKER, self)
        self._server.add(PREFILL if self.role is Role.PREFILL else DECODE, self)
        address = await self._server.start("127.0.0.1", port)
        self.record = WorkerRecord(
            worker_id=WorkerId(self.worker_id),
            incarnation=self.incarnation,
            role=self.role,
            address=address,
            transport="loopback",
            model=self.model,
            layout=self.layout,
            total_blocks=self.total_blocks,
            pid=1,
        )
        return self.record

    async def crash(self) -> None:
        """Break every connection and call at once."""
        await self._server.close()

    def report(self, load: WorkerLoad) -> None:
        self.load = load
        self._status_changed.set()
        self._status_changed = asyncio.Event()

    async def Watch(self, request: pb.WatchRequest, _context: Any) -> AsyncGenerator[pb.WorkerStatus, None]:  # noqa: N802
        self.watchers += 1
        self.watches += 1
        try:
            while True:
                await self.status_allowed.wait()
                yield status_to_proto(WorkerId(self.worker_id), self.incarnation, self.load)
                try:
                    async with asyncio.timeout(request.period_s):
                        await self._status_changed.wait()
                except TimeoutError:
                    pass
        finally:
            self.watchers -= 1

    async def DrainWorker(self, _request: pb.DrainWorkerRequest, _context: Any) -> pb.DrainWorkerResponse:  # noqa: N802
        self.report(WorkerLoad(draining=True))
        return pb.DrainWorkerResponse()

    async def Prefill(self, request: pb.PrefillRequest, _context: Any) -> AsyncGenerator[pb.PrefillEvent, None]:  # noqa: N802
        async with _Counted(self, request) as call:
            await self.on_prefill(0)
            started = pb.PrefillStarted(queue_s=0.0, cached_tokens=self.cached_tokens, fetch=self.fetch_report)
            yield pb.PrefillEvent(started=started)
            for piece in prompt_pieces(request):
                yield pb.PrefillEvent(prompt_logprobs=piece)
            await self.on_prefill(1)
            prompt = list(request.prompt_token_ids)
            for choice, seed in enumerate(seeds_of(request)):
                first = pb.FirstToken(token_id=seeded_token(prompt, seed), choice=choice)
                if request.sampling.HasField("logprobs"):
                    first.logprobs.CopyFrom(told([*prompt, first.token_id], len(prompt)))
                yield pb.PrefillEvent(first_token=first)
            call.done = True
            await self.export_over.wait()

    async def Decode(self, request: pb.DecodeRequest, _context: Any) -> AsyncGenerator[pb.DecodeEvent, None]:  # noqa: N802
        try:
            async for event in self._decode(request):
                yield event
        except BatonError:
            if self.kept_blocks:
                yield pb.DecodeEvent(kept=pb.BlocksKept(blocks=self.kept_blocks))
            raise

    async def _decode(self, request: pb.DecodeRequest) -> AsyncGenerator[pb.DecodeEvent, None]:
        async with _Counted(self, request) as call:
            handed_over = request.HasField("source")
            await self.before_start(0)
            yield pb.DecodeEvent(started=pb.DecodeStarted(queue_s=0.0, cached_tokens=self.cached_tokens))
            if handed_over:
                await self.before_handoff(0)
                report = pb.HandoffReport(
                    moved_blocks=1,
                    moved_bytes=64,
                    messages=1,
                    transfer_s=2e-6,
                    exposed_s=5e-7,
                    overlapped_s=1.5e-6,
                    transport="loopback",
                    wire_format="fp8",
                    exact_bytes=128,
                )
                yield pb.DecodeEvent(handoff=report)
            else:
                for piece in prompt_pieces(request):
                    yield pb.DecodeEvent(prompt_logprobs=piece)
            seeds, sampling = seeds_of(request), request.sampling
            answers = [answer(request.prompt_token_ids, sampling.max_tokens, seed) for seed in seeds]
            ended: set[int] = set()
            offset = 1 if handed_over else 0
            while offset < sampling.max_tokens and len(ended) < len(answers):
                await self.on_token(offset)
                offset, self.skip_tokens = offset + self.skip_tokens, 0
                for choice, tokens in enumerate(answers):
                    if choice in ended:
                        continue
                    some = tokens[offset : offset + self.tokens_per_event]
                    ending = [place for place, token in enumerate(some) if token in sampling.stop_token_ids]
                    some = some[: ending[0] + 1] if ending else some
                    ended.update([choice] if ending else [])
                    event = pb.Tokens(offset=offset, token_ids=some, choice=choice)
                    if sampling.HasField("logprobs"):
                        whole = [*request.prompt_token_ids, *tokens]
                        first = len(request.prompt_token_ids) + offset
                        event.logprobs.extend(told(whole, first + place) for place in range(len(some)))
                    yield pb.DecodeEvent(tokens=event)
                offset += self.tokens_per_event
            await self.before_finish(0)
            for choice in range(len(answers)):
                yield pb.DecodeEvent(finished=pb.DecodeFinished(finish_reason="length", choice=choice))
            call.done = True

    async def EndChoice(self, request: pb.EndChoiceRequest, _context: Any) -> pb.EndChoiceResponse:  # noqa: N802
        self.ended_choices.append(request.choice)
        return pb.EndChoiceResponse(found=True)


def prompt_pieces(request: pb.PrefillRequest | pb.DecodeRequest) -> Iterator[pb.PromptLogprobs]:
    """Yield the prompt's logprobs where they were asked for."""
    prompt = list(request.prompt_token_ids)
    if request.sampling.HasField("prompt_logprobs"):
        for start in range(1, len(prompt), PIECE):
            places = range(start, min(start + PIECE, len(prompt)))
            yield pb.PromptLogprobs(position=start, tokens=[told(prompt, place) for place in places])


class _Counted:
    """Counts a call while it runs, and as cancelled when it did not get to its end."""

    def __init__(self, worker: FakeWorker, order: Any) -> None:
        self._worker = worker
        self._order = order
        self.done = False

    async def __aenter__(self) -> Self:
        self._worker.orders.append(self._order)
        self._worker.live_calls += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._worker.live_calls -= 1
        if not self.done:
            self._worker.cancelled += 1
