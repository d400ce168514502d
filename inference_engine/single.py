"""The oracle: one request, one engine, no scheduler, no cache. What the cluster answers is compared with this."""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.errors import ContextTooLong
from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.step import SequenceSlice, SliceResult, StepPlan

CHUNK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleAnswer:
    """All that can be known of an answer."""

    token_ids: tuple[int, ...]
    """The stop token that ended it included."""
    logprobs: tuple[TokenLogprobs, ...]
    """Of each of them, where they were asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...]
    """Of each token of the prompt but its first, where they were asked for."""


def generate(engine: Engine, prompt: Sequence[int], sampling: Sampling, chunk_tokens: int = CHUNK_TOKENS) -> list[int]:
    """Return the tokens that follow ``prompt``, the stop token that ended them included.

    Uses the engine's blocks from 0 on. Raises `ContextTooLong` when prompt and answer do not fit the model or the pool,
    and what a step raises.
    """
    return list(generate_answer(engine, prompt, sampling, chunk_tokens).token_ids)


def generate_answer(
    engine: Engine, prompt: Sequence[int], sampling: Sampling, chunk_tokens: int = CHUNK_TOKENS
) -> SingleAnswer:
    """Do as `generate`, and return the logprobs too. ``sampling.answer_start`` is the caller's to set."""
    longest = len(prompt) + sampling.max_tokens
    blocks = engine.layout.blocks_for(longest - 1)  # the last token is drawn, never computed
    if longest > engine.identity.max_context_tokens or blocks > engine.memory.total_blocks:
        reason = f"{longest} tokens with the answer do not fit the model or the pool; make either shorter"
        raise ContextTooLong("prompt", reason)  # noqa: EM101  # the field's name
    table = range(blocks)
    prompt_logprobs: list[TokenLogprobs] = []
    for start in range(0, len(prompt), chunk_tokens):
        end = min(start + chunk_tokens, len(prompt))
        piece = SequenceSlice(
            token_ids=prompt[start:end],
            start=start,
            block_table=table,
            draw=sampling if end == len(prompt) else None,
            before=prompt[:start],
            prompt_logprobs=sampling.prompt_logprobs,
            following=prompt[end] if end < len(prompt) else None,
        )
        drawn = _step(engine, piece)
        prompt_logprobs += drawn.prompt_logprobs
    tokens = list(prompt)
    logprobs: list[TokenLogprobs] = []
    while True:
        tokens += drawn.token_ids
        logprobs += drawn.logprobs
        if tokens[-1] in sampling.stop_token_ids or len(tokens) == longest:
            break
        start = len(tokens) - 1
        piece = SequenceSlice(
            token_ids=tokens[-1:], start=start, block_table=table, draw=sampling, before=tokens[:start]
        )
        drawn = _step(engine, piece)
    return SingleAnswer(
        token_ids=tuple(tokens[len(prompt) :]), logprobs=tuple(logprobs), prompt_logprobs=tuple(prompt_logprobs)
    )


def _step(engine: Engine, piece: SequenceSlice) -> SliceResult:
    return engine.step(StepPlan(slices=(piece,))).slices[0]
