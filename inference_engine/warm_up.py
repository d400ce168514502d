"""The first steps of an engine, before anybody waits for them: kernels are compiled and caches are filled."""

from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.step import SequenceSlice, StepPlan

PROMPT_TOKENS = 16


def warm_up(engine: Engine) -> Engine:
    """Read a short prompt and write one token in the first blocks, twice; return the engine.

    Nothing of it can be found later: the blocks are not sealed. Raises `BrokenLogits` when the weights are no good.
    """
    draw = Sampling(temperature=1.0, top_p=0.9, top_k=8, seed=0, max_tokens=1, stop_token_ids=frozenset())
    room = min(engine.memory.total_blocks * engine.layout.block_size_tokens, engine.identity.max_context_tokens)
    length = max(1, min(PROMPT_TOKENS, room - 1))
    table = range(engine.layout.blocks_for(min(length + 1, room)))
    for _ in range(2):
        prompt = SequenceSlice(token_ids=[0] * length, start=0, block_table=table, draw=draw)
        engine.step(StepPlan(slices=(prompt,)))
        if room > length:
            written = SequenceSlice(token_ids=[0], start=length, block_table=table, draw=draw)
            engine.step(StepPlan(slices=(written,)))
    return engine
