"""What a worker checks of an order before it queues it: the same rules for both roles."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from cluster_core.errors import ContextTooLong, DuplicateRequest, NoWorker, Overloaded, TokenOutOfRange
from cluster_core.identity import Attempt
from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.sampling import Sampling
from cluster_rpc.worker_messages import WorkOrder

RETRY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a worker can take at all."""

    model: ModelIdentity
    layout: KvLayout
    total_blocks: int
    max_waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupation:
    """What a worker has taken already."""

    draining: bool
    waiting: int
    live_attempt: Attempt | None
    """The attempt of the same request that is live here."""


def check_order(order: WorkOrder, max_tokens: int, capacity: Capacity, occupation: Occupation) -> None:
    """Refuse an order that writes at most ``max_tokens`` tokens of each answer here, or let it pass.

    Raises `NoWorker` when draining, `DuplicateRequest` when the request is live in this or a later attempt,
    `TokenOutOfRange`, `ContextTooLong` when model or pool could never hold it, `Overloaded` when the queue is full.
    """
    if occupation.draining:
        message = "this worker is draining"
        raise NoWorker(message, RETRY_S)
    live = occupation.live_attempt
    if live is not None and live >= order.attempt:
        field = "request_id"
        reason = f"attempt {live} of {order.request_id} is live here"
        raise DuplicateRequest(field, reason)
    for field, token_ids in (("sampling", _sampled(order.sampling)), ("prompt_token_ids", order.prompt_token_ids)):
        largest = max(token_ids, default=0)
        if largest >= capacity.model.vocab_size:
            reason = f"token id {largest} is not below the vocabulary's size, {capacity.model.vocab_size}"
            raise TokenOutOfRange(field, reason)
    field = "prompt_token_ids"
    tokens = len(order.prompt_token_ids) + max_tokens
    if tokens > capacity.model.max_context_tokens:
        reason = f"{tokens} tokens exceed the context of {capacity.model.max_context_tokens}"
        raise ContextTooLong(field, reason)
    choices = order.choices if max_tokens else 1
    needed = capacity.layout.blocks_for_answers(len(order.prompt_token_ids), max_tokens, choices)
    if needed > capacity.total_blocks:
        several = f" in each of {choices} choices" if choices > 1 else ""
        reason = (
            f"{tokens} tokens{several} need {needed} blocks and this worker has {capacity.total_blocks}: send fewer"
        )
        raise ContextTooLong(field, reason)
    if occupation.waiting >= capacity.max_waiting:
        message = f"{occupation.waiting} requests wait here already"
        raise Overloaded(message, RETRY_S)


def _sampled(sampling: Sampling) -> Iterator[int]:
    """Every token id that a worker would look up in its logits."""
    if sampling.min_tokens:
        yield from sampling.stop_token_ids
    yield from sampling.allowed_token_ids
    yield from sampling.forced_token_ids
    yield from (token_id for token_id, _ in sampling.logit_bias)
    yield from chain.from_iterable(sampling.banned_sequences)
    if sampling.thinking is not None:
        yield from sampling.thinking.start
        yield from sampling.thinking.end
