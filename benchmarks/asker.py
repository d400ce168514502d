"""A client of a benchmark's cluster that notes when each token of an answer came."""

import asyncio
import itertools
import random
import statistics
import time
from dataclasses import dataclass

from cluster_rpc.client import BatonClient

WORDS = 8190
"""Token ids below this are plain words of the bench model."""
STREAMS, STREAM_PROMPT_TOKENS, STREAM_TOKENS = 8, 128, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one request took, in seconds."""

    ttft_s: float
    total_s: float
    first_gap_s: float
    """From the first token to the second: the hand-over and a step."""
    later_gap_s: float
    """The median gap between later tokens: a step."""
    quiet_gap_s: float
    """From the third token to the fourth, one such gap: nothing is handed over in it."""
    handover_s: float
    """The router's word for the difference."""
    transfer_s: float = 0.0
    exposed_s: float = 0.0
    """From the end of the prefill until every block could be read, as the decode worker says it."""

    @property
    def second_gap_s(self) -> float:
        """Return the hand-over as the client sees it."""
        return self.first_gap_s - self.later_gap_s

    @property
    def jitter_s(self) -> float:
        """Return what the same difference is where nothing is handed over."""
        return self.quiet_gap_s - self.later_gap_s


class Asker:
    """Sends requests to one router."""

    def __init__(self, client: BatonClient, *, split: bool) -> None:
        self._client = client
        self._split = split
        self._salts = itertools.count()
        self._random = random.Random(1)  # noqa: S311  # prompts, not secrets

    async def ask_new(self, prompt_tokens: int, answer_tokens: int) -> Seen:
        """Send a prompt that nobody has seen."""
        return await self.ask(self.new_prompt(prompt_tokens), self.new_salt(), answer_tokens)

    def new_prompt(self, tokens: int) -> list[int]:
        """Draw a prompt."""
        return [self._random.randrange(WORDS) for _ in range(tokens)]

    def new_salt(self) -> str:
        """Return a salt that shares no cached block with anybody."""
        return f"{'split' if self._split else 'local'} {next(self._salts)}"

    async def ask(self, prompt: list[int], salt: str, answer_tokens: int) -> Seen:
        """Send ``prompt``; check that it went where it should. An answer has four tokens or more."""
        arrivals: list[float] = []  # of each token
        started = time.perf_counter()
        completion = None
        async for chunk in self._client.generate(
            prompt, max_tokens=answer_tokens, temperature=0.0, ignore_eos=True, cache_salt=salt
        ):
            arrivals += [time.perf_counter()] * len(chunk.token_ids)
            completion = chunk.completion
        assert completion is not None, "an answer ends with a completion"
        attempt = (await self._client.get_placement(completion.request_id))[-1]
        assert (attempt.chosen.prefill_worker is not None) == self._split, "the router chose another placement"
        gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
        return Seen(
            ttft_s=arrivals[0] - started,
            total_s=arrivals[-1] - started,
            first_gap_s=gaps[0],
            later_gap_s=statistics.median(gaps[1:]),
            quiet_gap_s=gaps[2],
            handover_s=completion.timings.handover_s,
            transfer_s=attempt.handoff.transfer_s if attempt.handoff else 0.0,
            exposed_s=attempt.handoff.exposed_s if attempt.handoff else 0.0,
        )

    async def tokens_per_s(self) -> float:
        """Return the tokens that `STREAMS` streams write in a second, their prompts' reading included."""

        async def stream() -> int:
            answer = await self._client.generate_text(
                self.new_prompt(STREAM_PROMPT_TOKENS),
                max_tokens=STREAM_TOKENS,
                temperature=0.0,
                ignore_eos=True,
                cache_salt=self.new_salt(),
            )
            return len(answer.token_ids)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(stream()) for _ in range(STREAMS)]
        return sum(each.result() for each in streams) / (time.perf_counter() - started)
