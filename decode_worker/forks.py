"""Several answers to one prompt: the first reads or imports it, the others begin with what it has then."""

from collections.abc import Callable
from dataclasses import replace

from cluster_core.holds import RequestHold
from decode_worker.answer import Answer, Stage
from inference_engine.block_pool import NoFreeBlocks


def fork_answer(answer: Answer, choice: int, copy_block: Callable[[int, int], None]) -> Answer:
    """Return the answer ``choice`` to the order of ``answer``, whose prompt is computed and which has no token yet.

    It shares the prompt's full blocks; the one that is not full is copied, with ``copy_block(source, target)``. Where
    there is no block for that it has none at all, and waits as an answer does that was preempted.
    """
    order = replace(answer.order, sampling=replace(answer.order.sampling, seed=answer.fork_seeds[choice - 1]))
    arrival = answer.arrival + choice
    hold = RequestHold(order.request_id, order.attempt, arrival)
    try:
        sequence, copied = answer.sequence.fork(hold)
    except NoFreeBlocks:
        sequence, copied = answer.sequence.without_blocks(hold), None
    if copied is not None:
        copy_block(*copied)
    return replace(answer, order=order, sequence=sequence, arrival=arrival, choice=choice, stage=Stage.WAITING)
