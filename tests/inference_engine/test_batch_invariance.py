"""With ``batch_invariant`` a request's logits are the same bits whatever its company and however its prompt was cut."""

import random
from dataclasses import dataclass, field

import pytest
import torch

from cluster_core.sampling import Sampling
from inference_engine.batch import build_batch
from inference_engine.engine import Engine
from inference_engine.step import SequenceSlice, StepPlan
from tests.inference_engine.conftest import Models
from tests.model_fixtures import prompt_tokens

BLOCKS_EACH = 12
DRAW = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=1, stop_token_ids=frozenset())


@dataclass
class Request:
    """A prompt and what follows it, all known beforehand, of which some is computed."""

    token_ids: list[int]
    first_blocks: int
    computed: int = 0
    logits: dict[int, torch.Tensor] = field(default_factory=dict)
    """After the token at each position at which a chunk ended."""

    def next_slice(self, tokens: int) -> SequenceSlice:
        end = min(len(self.token_ids), self.computed + tokens)
        table = range(self.first_blocks, self.first_blocks + BLOCKS_EACH)
        return SequenceSlice(
            token_ids=self.token_ids[self.computed : end], start=self.computed, block_table=table, draw=DRAW
        )


def compute(engine: Engine, pieces: list[tuple[Request, SequenceSlice]]) -> None:
    """Compute a step and keep its logits."""
    plan = StepPlan(slices=tuple(piece for _, piece in pieces))
    with torch.inference_mode():
        batch = build_batch(plan, engine.layout.block_size_tokens, torch.device("cpu"))
        logits = engine._decoder.logits(batch)
    for row, (request, piece) in enumerate(pieces):
        request.computed += len(piece.token_ids)
        request.logits[request.computed] = logits[row]


def token_by_token(engine: Engine, token_ids: list[int]) -> Request:
    """Compute the yardstick: alone, one token a step."""
    request = Request(token_ids, 0)
    while request.computed < len(token_ids):
        compute(engine, [(request, request.next_slice(1))])
    return request


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])  # odd heads, a window, heads of whole groups
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neither_company_nor_chunks_change_a_bit(models: Models, dtype: str, kind: str, threads: int) -> None:
    chance = random.Random(f"{dtype} {kind} {threads}")  # noqa: S311  # not for secrets
    engine = models.engine(kind, dtype=dtype, batch_invariant=True, threads=threads)
    prompts = [prompt_tokens(length, seed=length) for length in (1, 33, 70, 150)]
    expected = [token_by_token(engine, prompt) for prompt in prompts]
    for _ in range(3):
        requests = [Request(prompt, index * BLOCKS_EACH) for index, prompt in enumerate(prompts)]
        while waiting := [request for request in requests if request.computed < len(request.token_ids)]:
            company = chance.sample(waiting, chance.randint(1, len(waiting)))
            compute(engine, [(request, request.next_slice(chance.choice((1, 2, 7, 40, 150)))) for request in company])
        for request, alone in zip(requests, expected, strict=True):
            for position, logits in request.logits.items():
                assert torch.equal(logits, alone.logits[position]), position
    engine.close()
