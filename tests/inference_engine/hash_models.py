"""Hash models for tests, and a driver that feeds sequences to an engine in pieces."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from cluster_core.sampling import Sampling
from inference_engine.hash_lm import HashEngine
from inference_engine.hash_model import HashModel, make_hash_model
from inference_engine.settings import EngineSettings, HashModelSettings, ModelSettings
from inference_engine.step import SequenceSlice, StepPlan

LARGEST_VOCABULARY = 1 << 24
"""Two different hashes give one token so rarely that a test may take it for never."""


def hash_model(block_size: int = 4, dtype: str = "float32", **shape: float) -> HashModel:
    settings = HashModelSettings(**{"vocab_size": LARGEST_VOCABULARY, **shape})  # type: ignore[arg-type]  # keys pass through
    return make_hash_model(
        ModelSettings(implementation="hash"), settings, EngineSettings(block_size_tokens=block_size, dtype=dtype)
    )


def hash_sampling(max_tokens: int = 4, temperature: float = 0.0, seed: int = 0, **others: object) -> Sampling:
    values = {"top_p": 1.0, "top_k": 0, "stop_token_ids": frozenset(), **others}
    return Sampling(temperature=temperature, seed=seed, max_tokens=max_tokens, **values)  # type: ignore[arg-type]  # fields pass through


def dice_of(seed: int) -> Random:
    return Random(seed)  # noqa: S311  # tests must repeat


def random_tokens(length: int, seed: int = 0) -> list[int]:
    dice = dice_of(seed)
    return [dice.randrange(LARGEST_VOCABULARY) for _ in range(length)]


@dataclass
class Running:
    """One request on its way through an engine."""

    prompt: list[int]
    sampling: Sampling
    table: Sequence[int]
    computed: int = 0
    """How many tokens' KV is in the blocks."""
    answer: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        last = self.answer[-1] if self.answer else None
        return len(self.answer) == self.sampling.max_tokens or last in self.sampling.stop_token_ids

    def piece(self, chunk: int) -> SequenceSlice:
        tokens = [*self.prompt, *self.answer]
        end = min(len(tokens), self.computed + chunk)
        return SequenceSlice(
            token_ids=tokens[self.computed : end],
            start=self.computed,
            block_table=self.table,
            draw=self.sampling if end == len(tokens) else None,
        )

    def take(self, piece: SequenceSlice, drawn: Sequence[int]) -> None:
        self.computed += len(piece.token_ids)
        self.answer += drawn


def finish(engine: HashEngine, sequences: Sequence[Running], dice: Random, longest_chunk: int = 9) -> None:
    """Step until all answers are written: sequences and chunks of each step as the dice fall."""
    while waiting := [sequence for sequence in sequences if not sequence.done]:
        chosen = dice.sample(waiting, dice.randint(1, len(waiting)))
        pieces = [sequence.piece(dice.randint(1, longest_chunk)) for sequence in chosen]
        results = engine.step(StepPlan(slices=tuple(pieces))).slices
        for sequence, piece, result in zip(chosen, pieces, results, strict=True):
            sequence.take(piece, result.token_ids)
