"""The clients: what each asks for, what it got, and whether it may be content with that."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc.aio import EOF as END_OF_STREAM  # type: ignore[attr-defined]  # missing in the stubs

from cluster_core.errors import BatonError, PartUnavailable
from cluster_core.sampling import Sampling
from cluster_rpc.errors import from_rpc_error
from cluster_rpc.v1 import generation_pb2 as pb
from cluster_rpc.v1 import generation_pb2_grpc
from simulation.calls import Channel
from simulation.hash_engine import answer
from simulation.history import History
from simulation.network import Network
from simulation.router_life import router_address, token_text
from simulation.scenario import RequestPlan
from simulation.virtual_loop import Host

SENDINGS = 8
SEND_AGAIN_S = 0.1


class Violation(Exception):
    """Something happened that must never happen."""


class Client:
    """One request, from its first message to its last."""

    def __init__(
        self, plan: RequestPlan, network: Network, host: Host, window_tokens: int, harm: Callable[[], tuple[int, int]]
    ) -> None:
        """``harm`` counts the faults so far that may cost a request an attempt, and those that are over."""
        self.plan = plan
        self.answers: list[list[int]] = [[] for _ in range(plan.choices)]
        self.complete: list[bool] = [False] * plan.choices
        self.error: BatonError | None = None
        self.over = False
        self.left = False
        """The client went away, or cancelled."""
        self.harm = 0
        """Such faults while the request was served."""
        self._harm = harm
        self._call: Any = None
        self._network = network
        self._history: History = network.history
        self._host = host
        whole = [self._oracle(choice, window_tokens) for choice in range(plan.choices)]
        self._stop = None if plan.stops_after is None else whole[0][: plan.stops_after][-1]
        """The token whose text is the stop string."""
        self._expected = [self._until_stop(tokens) for tokens in whole]

    @property
    def succeeded(self) -> bool:
        """Whether every answer is complete."""
        return all(self.complete)

    async def run(self) -> None:
        """Send the request, and again while no router answers; read what comes. Raises `Violation`."""
        plan, loop = self.plan, self._network.loop
        channel = Channel(self._network, self._host, router_address(plan.router))
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        self._history.note(loop.now, "request", plan.name, f"{len(plan.prompt)}+{plan.max_tokens}")
        if plan.leaves_after_s is not None:
            asyncio.get_running_loop().call_later(plan.leaves_after_s, self._leave, stub)
        _, over_before = self._harm()
        for _ in range(SENDINGS):
            self.error = None
            await self._send(stub)
            if not isinstance(self.error, PartUnavailable) or self.left or any(self.answers) or any(self.complete):
                break
            await asyncio.sleep(SEND_AGAIN_S)
        self.over = True
        self.harm = self._harm()[0] - over_before
        told = f"{type(self.error).__name__}: {self.error}" if self.error else "left" if not self.succeeded else "ok"
        self._history.note(loop.now, "end", plan.name, [len(tokens) for tokens in self.answers], told)
        if self.error is None and not self.succeeded and not self.left:
            self._fail("the stream ended well before its answers were complete")

    async def _send(self, stub: Any) -> None:
        plan = self.plan
        self._call = call = stub.Generate(self._request(), timeout=plan.deadline_s)
        try:
            while (response := await call.read()) is not END_OF_STREAM:
                self._take(response)
                if plan.pause_s:
                    await asyncio.sleep(plan.pause_s)
        except grpc.aio.AioRpcError as error:
            self.error = from_rpc_error(error, router_address(plan.router))
        except asyncio.CancelledError:
            if not self.left:
                raise

    def _leave(self, stub: Any) -> None:
        if self.over:
            return
        self.left = True
        self._history.note(self._network.loop.now, "leave", self.plan.name, "by id" if self.plan.cancels_by_id else "")
        if self.plan.cancels_by_id:
            asyncio.create_task(self._cancel_by_id(stub), name="cancel")  # noqa: RUF006  # the host keeps its tasks
        else:
            self._call.cancel()

    async def _cancel_by_id(self, stub: Any) -> None:
        try:
            await stub.Cancel(pb.CancelRequest(request_id=self.plan.name), timeout=2.0)
        except grpc.aio.AioRpcError:
            self._history.note(self._network.loop.now, "no cancel", self.plan.name)

    def _request(self) -> pb.GenerateRequest:
        plan = self.plan
        sampling = pb.SamplingParams(
            temperature=plan.temperature,
            max_tokens=plan.max_tokens,
            stop_token_ids=plan.stop_token_ids,
            n=plan.choices,
            seed=plan.seed,
            stop=() if self._stop is None else (token_text(self._stop),),
        )
        return pb.GenerateRequest(
            request_id=plan.name,
            tokenized=pb.TokenizedInput(input_ids=plan.prompt),
            sampling_params=sampling,
            cache_salt=plan.salt,
            recovery=pb.RECOVERY_RECOVER if plan.recover else pb.RECOVERY_FAIL,
        )

    def _oracle(self, choice: int, window_tokens: int) -> list[int]:
        plan = self.plan
        sampling = Sampling(
            temperature=plan.temperature,
            top_p=1.0,
            top_k=0,
            seed=plan.seed,
            max_tokens=plan.max_tokens,
            stop_token_ids=frozenset(plan.stop_token_ids),
        )
        return answer(plan.prompt, sampling, choice, window_tokens)

    def _until_stop(self, tokens: list[int]) -> list[int]:
        return tokens[: tokens.index(self._stop) + 1] if self._stop in tokens else tokens

    def _take(self, response: pb.GenerateResponse) -> None:
        """Check one message against what came before and against the oracle."""
        if response.WhichOneof("response") == "complete":
            self._take_end(response.complete)
            return
        chunk = response.chunk
        choice, tokens = chunk.index, self.answers[chunk.index]
        self._history.note(self._network.loop.now, "tokens", self.plan.name, choice, list(chunk.token_ids))
        if self.complete[choice]:
            self._fail(f"tokens of choice {choice} after its end")
        if chunk.token_index != len(tokens):
            self._fail(f"choice {choice}: token {chunk.token_index} follows {len(tokens)} tokens")
        tokens.extend(chunk.token_ids)
        expected = self._expected[choice]
        if tokens != expected[: len(tokens)]:
            self._fail(f"choice {choice}: wrong tokens: {tokens}, and not {expected}")

    def _take_end(self, complete: pb.GenerateComplete) -> None:
        choice, plan = complete.index, self.plan
        tokens, expected = self.answers[choice], self._expected[choice]
        if self.complete[choice]:
            self._fail(f"choice {choice} ended twice")
        self.complete[choice] = True
        if tokens != expected:
            self._fail(f"choice {choice} is told to be complete: {tokens}, and not {expected}")
        stopped = tokens[-1] in (*plan.stop_token_ids, self._stop)
        if complete.finish_reason != ("stop" if stopped else "length"):
            self._fail(f"choice {choice} finished by {complete.finish_reason!r}")
        if (complete.prompt_tokens, complete.completion_tokens) != (len(plan.prompt), len(tokens)):
            self._fail(f"choice {choice}: usage {complete.prompt_tokens} + {complete.completion_tokens} is wrong")

    def _fail(self, message: str) -> None:
        told = f"{self.plan.name}: {message}"
        raise Violation(told)
