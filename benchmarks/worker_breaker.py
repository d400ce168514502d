"""Kills or stops the decode worker that is writing an answer, and notes what its client sees of it."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count

from benchmarks.asker import WORDS
from cluster_rpc.answers import ClusterView, WorkerView
from cluster_rpc.client import BatonClient

PROMPT_TOKENS = 512
ANSWER_TOKENS = 64
DISTURB_AFTER = 16
"""Tokens that have come when the worker is killed or stopped."""
WAKE_AFTER = 4
"""Tokens that have come after it when a stopped worker is woken: the other one is writing by then."""
RECOVERY_TIMEOUT_S = 60.0


@dataclass(slots=True, kw_only=True)
class Stream:
    """An answer as it came."""

    request_id: str = ""
    started: float = 0.0
    tokens: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    """Of each token."""

    def until_token_s(self, number: int) -> float:
        """Return how long after the request's start token ``number`` came."""
        return self.arrivals[number] - self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbed:
    """What one disturbance did."""

    detected_s: float
    """From the signal to the beginning of the next attempt."""
    resumed_s: float
    """From the signal to the first token of the next attempt."""
    scratch_s: float
    """What the undisturbed request took from its start to that token: a restart from scratch."""
    cached_s: float
    """The same of a request whose prompt was cached everywhere: a restart that only loses the answer."""
    equal_tokens: int
    """Tokens that are those of the undisturbed answer: all, or as many as there are before the first difference."""
    expected_tokens: int
    attempts: int
    late_tokens: int
    """Tokens that a stopped worker wrote without the client's getting them: what was on its way, or written later."""
    fenced_s: float
    """From the waking of a stopped worker until it was ready again and held nothing; 0 where nobody was stopped."""


@dataclass(slots=True)
class _Signalled:
    """A worker that got a signal in the middle of an answer."""

    worker: WorkerView
    at: float
    after_tokens: int
    asleep: bool
    woken: float | None = None

    def wake(self) -> None:
        """Let it go on."""
        os.kill(self.worker.pid, signal.SIGCONT)
        self.asleep = False
        self.woken = time.perf_counter()


class Breaker:
    """Asks every prompt three times: undisturbed, again with its prompt cached, and, under a new salt, disturbed."""

    def __init__(self, client: BatonClient) -> None:
        self._client = client
        self._random = random.Random(1)  # noqa: S311  # prompts, not secrets
        self._numbers = count()

    async def kill(self) -> Disturbed:
        """Kill the worker that writes an answer."""
        return await self._disturb(signal.SIGKILL)

    async def stop(self) -> Disturbed:
        """Stop the worker that writes an answer, and wake it while another one goes on with it."""
        return await self._disturb(signal.SIGSTOP)

    async def at_rest(self) -> ClusterView:
        """Wait until all three workers are ready and hold nothing."""
        return await self._until(lambda view: [_is_idle(worker) for worker in view.workers] == [True] * 3)

    async def _disturb(self, how: signal.Signals) -> Disturbed:
        await self.at_rest()
        prompt, salt = [self._random.randrange(WORDS) for _ in range(PROMPT_TOKENS)], self._new_salt()
        calm = await self._ask(prompt, salt)
        cached = await self._ask(prompt, salt)
        before = await self.at_rest()
        stream, signalled = await self._ask_disturbed(prompt, how)
        fenced_s, written = 0.0, 0
        if signalled.woken is not None:
            victim = signalled.worker
            after = await self._until(lambda view: any(_is_idle(each) for each in view.workers if _same(each, victim)))
            fenced_s = time.perf_counter() - signalled.woken
            written = _written(after, victim) - _written(before, victim)
        attempts = await self._client.get_placement(stream.request_id)
        if len(attempts) == 1:
            message = "the answer went on undisturbed: there was no second attempt"
            raise RuntimeError(message)
        begun = stream.started + attempts[1].spans[0].start_s
        first = next(place for place, arrival in enumerate(stream.arrivals) if arrival > begun)
        return Disturbed(
            detected_s=begun - signalled.at,
            resumed_s=stream.arrivals[first] - signalled.at,
            scratch_s=calm.until_token_s(first),
            cached_s=cached.until_token_s(first),
            equal_tokens=equal_tokens(stream.tokens, calm.tokens),
            expected_tokens=len(calm.tokens),
            attempts=len(attempts),
            late_tokens=max(0, written - (first - 1)),  # the very first token is the prefill worker's
            fenced_s=fenced_s,
        )

    async def _ask_disturbed(self, prompt: list[int], how: signal.Signals) -> tuple[Stream, _Signalled]:
        """Ask, and send the signal to the worker that writes; a stopped worker is woken in any case."""
        stream = self._new_stream()
        signalled: _Signalled | None = None
        try:
            async for come in self._counted(stream, prompt, self._new_salt()):
                if signalled is None and come >= DISTURB_AFTER:
                    worker = await self._writer(stream.request_id)
                    os.kill(worker.pid, how)
                    signalled = _Signalled(worker, time.perf_counter(), come, how is signal.SIGSTOP)
                elif signalled is not None and signalled.asleep and come >= signalled.after_tokens + WAKE_AFTER:
                    signalled.wake()
        finally:
            if signalled is not None and signalled.asleep:
                signalled.wake()
        assert signalled is not None, "an answer is longer than what comes before the disturbance"
        return stream, signalled

    async def _ask(self, prompt: list[int], salt: str) -> Stream:
        stream = self._new_stream()
        async for _ in self._counted(stream, prompt, salt):
            pass
        return stream

    async def _counted(self, stream: Stream, prompt: list[int], salt: str) -> AsyncGenerator[int, None]:
        """Ask; fill ``stream`` and yield how many tokens have come, whenever some have."""
        stream.started = time.perf_counter()
        answer = self._client.generate(
            prompt,
            max_tokens=ANSWER_TOKENS,
            temperature=0.0,
            ignore_eos=True,
            cache_salt=salt,
            request_id=stream.request_id,
        )
        async with aclosing(answer):
            async for chunk in answer:
                now = time.perf_counter()
                stream.tokens += chunk.token_ids
                stream.arrivals += [now] * len(chunk.token_ids)
                yield len(stream.tokens)

    async def _writer(self, request_id: str) -> WorkerView:
        """Return the worker that writes the answer now."""
        attempt = (await self._client.get_placement(request_id))[-1]
        view = await self._client.list_workers()
        return next(worker for worker in view.workers if worker.worker_id == attempt.chosen.decode_worker)

    async def _until(self, settled: Callable[[ClusterView], bool]) -> ClusterView:
        async with asyncio.timeout(RECOVERY_TIMEOUT_S):
            while not settled(view := await self._client.list_workers()):  # noqa: ASYNC110  # other processes' state
                await asyncio.sleep(0.02)
        return view

    def _new_stream(self) -> Stream:
        return Stream(request_id=f"failover-{next(self._numbers)}")

    def _new_salt(self) -> str:
        return f"salt {next(self._numbers)}"


def equal_tokens(tokens: list[int], expected: list[int]) -> int:
    """Return how many tokens are in their place, up to the first that is not; each beyond the end counts against them.

    A token that is lost or repeated shifts all that follow it.
    """
    pairs = zip(tokens, expected, strict=False)
    alike = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(tokens), len(expected)))
    return max(0, alike - max(0, len(tokens) - len(expected)))


def _is_idle(worker: WorkerView) -> bool:
    load = worker.load
    return worker.state == "ready" and not (load.running_requests or load.waiting_requests or load.held_blocks)


def _written(view: ClusterView, worker: WorkerView) -> int:
    return sum(each.load.written_tokens for each in view.workers if _same(each, worker))


def _same(worker: WorkerView, other: WorkerView) -> bool:
    return worker.worker_id == other.worker_id and worker.incarnation == other.incarnation
