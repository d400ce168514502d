"""Orders for workers on the fake engine, and how their answers are collected."""

from collections.abc import Sequence
from dataclasses import replace

from cluster_core.hash_chain import root_hash
from cluster_core.identity import Attempt, RequestId
from cluster_core.sampling import Sampling
from cluster_rpc.worker_messages import PrefillOrigin, WorkOrder
from decode_worker.answer import Answer
from decode_worker.answer_stream import Finished, TokensWritten
from tests.fake_engine import FAKE_LAYOUT, FAKE_MODEL, GREEDY, VOCAB_SIZE

ROOT = root_hash(FAKE_MODEL.root_hash_seed(FAKE_LAYOUT), "")


def make_order(
    name: str,
    prompt: Sequence[int],
    *,
    max_tokens: int = 8,
    sampling: Sampling = GREEDY,
    attempt: int = 1,
    origin: PrefillOrigin | None = None,
) -> WorkOrder:
    return WorkOrder(
        request_id=RequestId(name),
        attempt=Attempt(attempt),
        prompt_token_ids=tuple(prompt),
        sampling=replace(sampling, max_tokens=max_tokens),
        root_hash=ROOT,
        origin=origin,
    )


def make_prompt(length: int, seed: int = 0) -> list[int]:
    return [(seed * 31 + place * place + 3 * place) % VOCAB_SIZE for place in range(length)]


async def collect(answer: Answer) -> list[int]:
    """Read an answer to its end; offsets must follow one another."""
    tokens: list[int] = []
    first: int | None = None
    while True:
        event = await answer.stream.take()
        if isinstance(event, TokensWritten):
            first = event.offset if first is None else first
            assert event.offset == first + len(tokens)
            tokens += event.token_ids
        elif isinstance(event, Finished):
            return tokens
