"""Wishes for the sampler's tests, and a grammar that needs no tokenizer."""

from collections.abc import Sequence
from random import Random
from typing import Any

import torch

from cluster_core.errors import InvalidField
from cluster_core.sampling import Grammar, GrammarKind, Sampling, ThinkingLimit

DIGITS = Grammar(kind=GrammarKind.REGEX, text="5")
"""Here: tokens alternately odd and even, beginning with an odd one; after this many the answer is complete."""


def wish(**fields: Any) -> Sampling:
    """Return a sampling with some fields set and harmless others."""
    harmless: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "seed": 1,
        "max_tokens": 1,
        "stop_token_ids": frozenset(),
    }
    return Sampling(**(harmless | fields))


class OddAndEven:
    """Grammars as `DIGITS` describes them."""

    def __init__(self, vocabulary: int, stop_token_ids: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._stop_token_ids = list(stop_token_ids)

    def allowed(self, grammar: Grammar, answers: Sequence[Sequence[int]]) -> torch.Tensor:
        if not grammar.text.isdigit():
            field = "grammar"
            raise InvalidField(field, "not a number")
        masks = torch.zeros((len(answers), self._vocabulary), dtype=torch.bool)
        for mask, answer in zip(masks, answers, strict=True):
            if any(token % 2 == place % 2 for place, token in enumerate(answer)) or len(answer) > int(grammar.text):
                continue
            if len(answer) == int(grammar.text):
                mask[self._stop_token_ids] = True
            else:
                mask[1 - len(answer) % 2 :: 2] = True
                mask[self._stop_token_ids] = False
        return masks


def random_wish(random: Random, vocabulary: int, **fields: Any) -> Sampling:
    """Return a sampling in which anything may be set; stop token, if any, is the vocabulary's last."""

    def perhaps(value: Any, otherwise: Any) -> Any:
        return value if random.random() < 0.4 else otherwise

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random.sample(range(vocabulary - 1), count))

    return wish(
        **{
            "temperature": random.choice([0.0, 0.5, 1.0, 1.5]),
            "top_p": perhaps(random.uniform(0.05, 1), 1.0),
            "top_k": perhaps(random.randint(1, vocabulary), 0),
            "min_p": perhaps(random.uniform(0, 0.3), 0.0),
            "typical_p": perhaps(random.uniform(0.1, 1), 1.0),
            "seed": random.randrange(1 << 40),
            "repetition_penalty": perhaps(random.uniform(0.5, 2), 1.0),
            "presence_penalty": perhaps(random.uniform(-2, 2), 0.0),
            "frequency_penalty": perhaps(random.uniform(-2, 2), 0.0),
            "logit_bias": perhaps(tuple((token, random.uniform(-5, 5)) for token in tokens(6)), ()),
            "allowed_token_ids": perhaps(frozenset(tokens(vocabulary // 2)) | {vocabulary - 1}, frozenset()),
            "banned_sequences": perhaps((tokens(1), tokens(2), tokens(2), tokens(3)), ()),
            "min_tokens": perhaps(random.randint(1, 8), 0),
            "stop_token_ids": frozenset({vocabulary - 1}),
        }
        | fields
    )


def random_thinking(random: Random, vocabulary: int) -> ThinkingLimit:
    """Return a limit that answers of random tokens meet."""
    start = random.choice([(), (random.randrange(vocabulary),)])
    end = tuple(random.sample(range(vocabulary), random.randint(1, 3)))
    return ThinkingLimit(start=start, end=end, max_tokens=random.randint(0, 5))
