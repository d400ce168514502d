"""Calls a prefill and a decode worker as the router does, both at once, and collects what they answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from cluster_core.handoff import FetchSource
from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import Sampling
from cluster_rpc.logprob_messages import logprobs_from_proto
from cluster_rpc.v1 import worker_pb2 as pb
from cluster_rpc.v1 import worker_pb2_grpc
from cluster_rpc.worker_messages import PrefillOrigin, WorkOrder, decode_to_proto, prefill_to_proto
from tests.fake_engine import GREEDY
from tests.worker_orders import ROOT, make_order

TIMEOUT_S = 30.0


@dataclass(slots=True)
class Answered:
    """What a client of both workers saw of one request."""

    tokens: list[int] = field(default_factory=list)
    report: pb.HandoffReport | None = None
    prefill_cached: int = 0
    decode_cached: int = 0
    finish_reason: str = ""
    first_again: int | None = None
    """The first token as a decode worker told it that read the prompt although a prefill worker did."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    fetch: pb.FetchReport | None = None
    """What the worker that read the prompt says of its fetch."""


class PairClient:
    """Both workers' services. ``root`` is the root hash of the model that they serve."""

    def __init__(self, prefill: grpc.aio.Channel, decode: grpc.aio.Channel, origin: PrefillOrigin) -> None:
        self.prefill: Any = worker_pb2_grpc.PrefillServiceStub(prefill)  # type: ignore[no-untyped-call]  # generated
        self.decode: Any = worker_pb2_grpc.DecodeServiceStub(decode)  # type: ignore[no-untyped-call]  # generated
        self.origin = origin
        self.root = ROOT

    async def split(
        self,
        name: str,
        prompt: Sequence[int],
        *,
        max_tokens: int = 8,
        sampling: Sampling = GREEDY,
        fetch: FetchSource | None = None,
    ) -> Answered:
        """Prefill on one worker, decode on the other, both told at once."""
        seen = Answered()
        order = replace(self._order(name, prompt, max_tokens, sampling), fetch=fetch)
        handed = self._order(name, prompt, max_tokens, sampling, self.origin)

        async def read_first() -> int:
            first = -1
            async for event in self.prefill.Prefill(prefill_to_proto(order), timeout=TIMEOUT_S):
                if event.HasField("started"):
                    seen.prefill_cached = event.started.cached_tokens
                    seen.fetch = event.started.fetch if event.started.HasField("fetch") else None
                else:
                    first = event.first_token.token_id
            return first

        reading = asyncio.create_task(read_first())
        try:
            await self._decode(decode_to_proto(handed), seen, offset=1)
        finally:
            seen.tokens.insert(0, await reading)
        assert seen.first_again in {None, seen.tokens[0]}
        return seen

    async def several(
        self, name: str, prompt: Sequence[int], choices: int, sampling: Sampling, *, split: bool
    ) -> list[Answered]:
        """Ask for several answers to one prompt; what both workers tell of a token must be the same."""
        order = self._order(name, prompt, sampling.max_tokens, sampling, self.origin if split else None)
        order = replace(order, choices=choices)
        calls = [self.decode.Decode(decode_to_proto(order), timeout=TIMEOUT_S)]
        if split:
            calls.append(self.prefill.Prefill(prefill_to_proto(replace(order, origin=None)), timeout=TIMEOUT_S))
        heard = [_Heard() for _ in range(choices)]

        async def read(call: Any) -> None:
            async for event in call:
                _hear(event, heard)

        await asyncio.gather(*(read(call) for call in calls))
        return [answer.answered() for answer in heard]

    async def local(
        self,
        name: str,
        prompt: Sequence[int],
        *,
        max_tokens: int = 8,
        sampling: Sampling = GREEDY,
        fetch: FetchSource | None = None,
    ) -> Answered:
        """Prefill and decode on the decode worker."""
        seen = Answered()
        order = replace(self._order(name, prompt, max_tokens, sampling), fetch=fetch)
        await self._decode(decode_to_proto(order), seen, offset=0)
        return seen

    async def _decode(self, request: pb.DecodeRequest, seen: Answered, offset: int) -> None:
        async for event in self.decode.Decode(request, timeout=TIMEOUT_S):
            match event.WhichOneof("event"):
                case "started":
                    seen.decode_cached = event.started.cached_tokens
                    if event.started.HasField("fetch"):
                        seen.fetch = event.started.fetch
                case "tokens":
                    token_ids = list(event.tokens.token_ids)
                    if event.tokens.offset < offset:
                        seen.first_again = token_ids.pop(0)
                    else:
                        assert event.tokens.offset == offset + len(seen.tokens)
                    seen.tokens += token_ids
                case "handoff":
                    seen.report = event.handoff
                case _:
                    seen.finish_reason = event.finished.finish_reason

    def _order(
        self, name: str, prompt: Sequence[int], max_tokens: int, sampling: Sampling, origin: PrefillOrigin | None = None
    ) -> WorkOrder:
        order = make_order(name, prompt, max_tokens=max_tokens, sampling=sampling, origin=origin)
        return replace(order, root_hash=self.root)


@dataclass(slots=True)
class _Heard:
    """What was told of one of several answers, token by token."""

    tokens: dict[int, tuple[int, pb.TokenLogprobs | None]] = field(default_factory=dict)
    prompt: list[pb.TokenLogprobs] = field(default_factory=list)
    report: pb.HandoffReport | None = None
    finish_reason: str = ""

    def note(self, offset: int, token_id: int, logprobs: pb.TokenLogprobs | None) -> None:
        before, _ = self.tokens.setdefault(offset, (token_id, logprobs))
        assert before == token_id, "told twice, and differently"

    def answered(self) -> Answered:
        assert sorted(self.tokens) == list(range(len(self.tokens))), "a token is missing"
        told = [self.tokens[offset] for offset in range(len(self.tokens))]
        return Answered(
            tokens=[token_id for token_id, _ in told],
            report=self.report,
            finish_reason=self.finish_reason,
            logprobs=list(logprobs_from_proto([one for _, one in told if one is not None], "test")),
            prompt_logprobs=list(logprobs_from_proto(self.prompt, "test")),
        )


def _hear(event: Any, heard: list[_Heard]) -> None:
    """Take a `PrefillEvent` or a `DecodeEvent`."""
    match event.WhichOneof("event"):
        case "first_token":
            first = event.first_token
            heard[first.choice].note(0, first.token_id, first.logprobs if first.HasField("logprobs") else None)
        case "tokens":
            tokens = event.tokens
            for place, token_id in enumerate(tokens.token_ids):
                logprobs = tokens.logprobs[place] if tokens.logprobs else None
                heard[tokens.choice].note(tokens.offset + place, token_id, logprobs)
        case "prompt_logprobs":
            assert event.prompt_logprobs.position == 1 + len(heard[0].prompt)
            for answer in heard:
                answer.prompt.extend(event.prompt_logprobs.tokens)
        case "handoff":
            for answer in heard:
                answer.report = event.handoff
        case "finished":
            heard[event.finished.choice].finish_reason = event.finished.finish_reason
        case _:
            pass
