"""What the answers should be: `transformers` for greedy ones, one engine in one process for sampled ones."""

from pathlib import Path

from cluster_core.sampling import Sampling
from inference_engine.engine import Engine
from inference_engine.single import generate
from tests.model_fixtures import EOS_TOKEN_ID, reference_greedy, reference_model


class Oracle:
    """Greedy answers of `transformers`, remembered."""

    def __init__(self, model: Path) -> None:
        self._model = reference_model(model)
        self._known: dict[tuple[int, ...], list[int]] = {}

    def greedy(self, prompt: list[int], max_tokens: int) -> list[int]:
        """Return at most ``max_tokens`` tokens after ``prompt``."""
        key = (max_tokens, *prompt)
        if key not in self._known:
            self._known[key] = reference_greedy(self._model, prompt, max_tokens)
        return self._known[key]


def sampled(engine: Engine, prompt: list[int], seed: int, max_tokens: int) -> list[int]:
    """Return the answer that a seeded request draws, as the tests ask for it."""
    sampling = Sampling(
        temperature=0.9,
        top_p=0.95,
        top_k=40,
        seed=seed,
        max_tokens=max_tokens,
        stop_token_ids=frozenset({EOS_TOKEN_ID}),
    )
    return generate(engine, prompt, sampling)
