"""The oracle: one request, one engine, no scheduler, no cache. What the cluster answers is compared with this."""

from collections.abc import Sequence

from cluster_core.errors import ContextTooLong
from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.step import SequenceSlice, StepPlan

CHUNK_TOKENS = 512


def generate(engine: Engine, prompt: Sequence[int], sampling: Sampling, chunk_tokens: int = CHUNK_TOKENS) -> list[int]:
    """Return the tokens that follow ``prompt``, the stop token that ended them included.

    Uses the engine's blocks from 0 on. Raises `ContextTooLong` when prompt and answer do not fit the model or the pool.
    """
    longest = len(prompt) + sampling.max_tokens
    blocks = engine.layout.blocks_for(longest - 1)  # the last token is drawn, never computed
    if longest > engine.identity.max_context_tokens or blocks > engine.memory.total_blocks:
        reason = f"{longest} tokens with the answer do not fit the model or the pool; make either shorter"
        raise ContextTooLong("prompt", reason)  # noqa: EM101  # the field's name
    table = range(blocks)
    for start in range(0, len(prompt), chunk_tokens):
        chunk = prompt[start : start + chunk_tokens]
        draw = sampling if start + len(chunk) == len(prompt) else None
        token = _step(engine, SequenceSlice(token_ids=chunk, start=start, block_table=table, draw=draw))
    written: list[int] = []
    while token is not None:
        written.append(token)
        if token in sampling.stop_token_ids or len(written) == sampling.max_tokens:
            break
        start = len(prompt) + len(written) - 1
        token = _step(engine, SequenceSlice(token_ids=[token], start=start, block_table=table, draw=sampling))
    return written


def _step(engine: Engine, piece: SequenceSlice) -> int | None:
    return engine.step(StepPlan(slices=(piece,))).tokens[0]
