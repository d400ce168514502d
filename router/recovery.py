"""What becomes of a request when a leg fails it: whether it may go on, and the name of the way that is taken.

The ways, from the cheapest to the dearest, are the rungs of a ladder; which one is taken is for the balancer to say, in
seconds. Before all of them: while the decode leg has told nothing, what was read for it can be handed to another
decode worker within the same attempt.
"""

from collections.abc import Iterable

from cluster_core.errors import (
    BatonError,
    DeadlineExceeded,
    DuplicateRequest,
    ExportGone,
    LegFailed,
    Overloaded,
    RequestError,
    RetryLater,
)
from cluster_core.identity import Role
from router.answer_choice import AnswerChoice
from router.attempt_run import AttemptRun, Failure
from router.placer import Avoided, Placed

FIRST_TRY = "first try"
OTHER_DECODE_WORKER = "other decode worker"
"""The same attempt: the export is handed to a second decode worker."""
OTHER_HOLDER = "other holder"
"""Most of the prompt lies in the cache of the worker that reads it, or is fetched from another one's."""
PARTIAL_PULL = "partial pull"
"""The decode worker holds a part, such as what a broken hand-over has left it; the rest is handed over."""
OTHER_PREFILL_WORKER = "other prefill worker"
SAME_PREFILL_WORKER = "same prefill worker"
"""It reads the prompt again: it was not it that failed."""
LOCAL_PREFILL = "local prefill"

NO_ROOM = "moved: its decode worker had no room yet"
"""The outcome of an attempt's decode leg that had not begun when another worker had room."""


def rung_of(placed: Placed, before: Placed | None) -> str:
    """Name the way that a new attempt takes; ``before`` is where the attempt that failed was placed."""
    if before is None:
        return FIRST_TRY
    chosen = placed.choice.chosen
    size = placed.decode.record.layout.block_size_tokens
    lent = chosen.loan.blocks * size if chosen.loan is not None else 0
    if placed.prefill is None:
        return OTHER_HOLDER if lent > chosen.prefill_tokens else LOCAL_PREFILL
    if chosen.decode_cached_tokens:
        return PARTIAL_PULL
    if max(lent, chosen.prefill_cached_tokens) > chosen.prefill_tokens:
        return OTHER_HOLDER
    if before.prefill is not None and before.prefill.record.incarnation == placed.prefill.record.incarnation:
        return SAME_PREFILL_WORKER
    return OTHER_PREFILL_WORKER


def may_rebind(run: AttemptRun) -> bool:
    """Say whether the attempt can go on with another decode worker and the blocks that its prefill leg exports.

    It can while only the decode leg has failed, by itself, and has told no token that the client has; and while the
    prefill worker has not ended its stream, which it does when it has failed or when its blocks were accepted.
    """
    failure = run.failure
    assert failure is not None
    if not run.on_offer or failure.blamed.role is not Role.DECODE or run.complete:
        return False
    if any(choice.handed_over for choice in run.choices):
        return False
    return isinstance(failure.error, RetryLater | LegFailed | DuplicateRequest)


def came_too_late(run: AttemptRun) -> bool:
    """Say whether a decode worker that took over found the export gone: the one before it had fetched it and failed.

    There was one failure then, and nobody else is to blame. (Where the prefill worker has failed as well, the attempt
    ends all the same, and the next one finds that out.)
    """
    failure, origin = run.failure, run.order.origin
    return failure is not None and isinstance(failure.error, ExportGone) and origin is not None and origin.binding > 0


def learn_of(failure: Failure, avoided: Avoided) -> BatonError | None:
    """Remember whom the next try must avoid; return what ends the request because no try could mend it."""
    error = failure.error
    about_request = isinstance(error, RequestError) and not isinstance(error, DuplicateRequest)
    if about_request or isinstance(error, DeadlineExceeded):
        return error  # a worker that still holds an earlier request of the same id is another matter
    if isinstance(error, RetryLater):
        avoided.full.add(failure.blamed.incarnation)
        if isinstance(error, Overloaded):
            avoided.last_refusal = error
    else:
        avoided.failed.add(failure.blamed.incarnation)
    return None


def unrecovered(failure: Failure, choices: Iterable[AnswerChoice]) -> LegFailed:
    """Return what ends a request that asked not to be recovered."""
    delivered = sum(len(choice.log.tokens) for choice in choices)
    cause = str(failure.error)
    worker = failure.blamed.worker_id
    named = cause if worker in cause else f"{worker}: {cause}"
    tokens = "1 token was" if delivered == 1 else f"{delivered} tokens were"
    return LegFailed(f"{named}; {tokens} delivered, and the request asked for no recovery")
