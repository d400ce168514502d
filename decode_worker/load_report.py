"""What a decode worker tells of its load."""

from collections.abc import Collection

from cluster_core.workers import WorkerLoad
from decode_worker.answer import Answer, Stage
from decode_worker.speculation import Speculation
from inference_engine.block_pool import BlockPool
from inference_engine.learned_rates import LearnedRates


def report_load(
    pool: BlockPool,
    rates: LearnedRates,
    speculation: Speculation,
    live: Collection[Answer],
    *,
    draining: bool,
    preemptions: int,
) -> WorkerLoad:
    """Return the load of a worker with these answers, which have not ended."""
    blocks, counts = pool.counts(), speculation.counts
    waiting = [answer for answer in live if answer.stage is Stage.WAITING]
    admitted = [answer for answer in live if answer.stage is not Stage.WAITING]
    to_read = [answer for answer in waiting if not answer.to_import]
    to_read += [answer for answer in admitted if answer.stage is Stage.RUNNING and answer.sequence.pending > 1]
    return WorkerLoad(
        waiting_requests=len(waiting),
        running_requests=len(admitted),
        queued_prefill_tokens=sum(answer.sequence.pending for answer in to_read),
        total_blocks=blocks.total,
        held_blocks=blocks.held,
        cached_blocks=blocks.cached,
        prefill_s_per_token=rates.prefill_s_per_token,
        decode_step_s=rates.decode_step_s,
        transfer_bytes_per_s=rates.transfer_bytes_per_s,
        transfer_fixed_s=rates.transfer_fixed_s,
        draining=draining,
        preemptions=preemptions,
        answer_steps=counts.answer_steps,
        written_tokens=counts.written,
        guessed_tokens=counts.guessed,
        accepted_guesses=counts.accepted,
        draft_s=counts.draft_s,
        draft_held_blocks=speculation.held_blocks,
    )
