"""Random samplings through a real worker pair: handed over, read in one place or resumed, as one engine writes them."""

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import Grammar, GrammarKind, Sampling, ThinkingLimit, choice_seed
from decode_worker.settings import DecodeSettings
from inference_engine.engine import Engine
from inference_engine.model_folder import open_model_folder
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.single import SingleAnswer, generate_answer
from prefill_worker.settings import PrefillSettings
from tests.model_fixtures import EOS_TOKEN_ID, VOCABULARY, make_model, prompt_tokens
from tests.worker_pair import WorkerPair, running_pair

BLOCKS = 64
MAX_TOKENS = 20
PREFILL = PrefillSettings(total_blocks=BLOCKS, token_budget=32, chunk_tokens=16, max_running=8, drain_s=5.0)
DECODE = DecodeSettings(total_blocks=BLOCKS, token_budget=32, chunk_tokens=16, max_running=16, drain_s=5.0)
GRAMMARS = (
    Grammar(kind=GrammarKind.REGEX, text="[a-f]{3,9}"),
    Grammar(kind=GrammarKind.CHOICE, text='["on", "one", "the end"]'),
    Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": "object", "properties": {"a": {"type": "integer"}}}'),
    Grammar(kind=GrammarKind.LARK, text='start: "th" ("e" | "in")+'),
)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine, Engine]:
    """Return the engines of the prefill and the decode worker, and the oracle's."""
    folder = make_model(Path(tmp_path_factory.mktemp("sampling")), "llama")
    opened = open_model_folder(ModelSettings(path=str(folder)))
    settings = EngineSettings(threads=1)
    return (
        Engine.load(opened, settings, BLOCKS),
        Engine.load(opened, settings, BLOCKS),
        Engine.load(opened, settings, BLOCKS),
    )


@pytest.fixture
async def pair(engines: tuple[Engine, Engine, Engine]) -> AsyncIterator[WorkerPair]:
    async with running_pair(PREFILL, DECODE, engines=engines[:2]) as pair:
        yield pair
        await pair.until_free()


def random_sampling(seed: int) -> tuple[list[int], Sampling, int]:
    """Return a prompt, what is asked of the sampling, and of how many answers: the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311  # a test's dice
    prompt = prompt_tokens(dice.choice((1, 15, 16, 17, 40, 70)), seed)

    def sometimes(value: object, otherwise: object, share: float = 0.4) -> object:
        return value if dice.random() < share else otherwise

    def some_tokens(most: int) -> tuple[int, ...]:
        return tuple(dice.randrange(VOCABULARY) for _ in range(dice.randint(1, most)))

    wishes: dict[str, object] = {
        "top_p": sometimes(dice.uniform(0.5, 1), 1.0),
        "top_k": sometimes(dice.randint(2, 60), 0),
        "min_p": sometimes(dice.uniform(0, 0.2), 0.0),
        "typical_p": sometimes(dice.uniform(0.5, 1), 1.0, 0.2),
        "repetition_penalty": sometimes(dice.uniform(0.7, 1.6), 1.0),
        "presence_penalty": sometimes(dice.uniform(-2, 2), 0.0),
        "frequency_penalty": sometimes(dice.uniform(-2, 2), 0.0),
        "logit_bias": sometimes(tuple((token, dice.uniform(-9, 9)) for token in range(90, 120)), ()),
        "allowed_token_ids": sometimes(frozenset(range(60, 310)), frozenset(), 0.2),
        "banned_sequences": sometimes((some_tokens(1), some_tokens(2), (101,), (110, 111)), ()),
        "forced_token_ids": sometimes(some_tokens(3), (), 0.2),
        "min_tokens": sometimes(dice.randint(1, 12), 0),
        "thinking": sometimes(ThinkingLimit(start=(), end=(304, 305), max_tokens=dice.randint(0, 9)), None, 0.3),
        "grammar": sometimes(dice.choice(GRAMMARS), None, 0.3),
        "logprobs": sometimes(dice.randint(0, 3), None),
        "prompt_logprobs": sometimes(dice.randint(0, 3), None, 0.3),
    }
    if wishes["grammar"] is not None:
        wishes |= {"allowed_token_ids": frozenset(), "banned_sequences": (), "forced_token_ids": (), "min_tokens": 0}
    sampling = Sampling(
        temperature=dice.choice((0.0, 0.7, 1.3)),
        seed=dice.getrandbits(63),
        max_tokens=MAX_TOKENS,
        stop_token_ids=frozenset({EOS_TOKEN_ID, *range(8)}),
        answer_start=len(prompt),
        **wishes,  # type: ignore[arg-type]  # each of its own type
    )
    return prompt, sampling, dice.choice((1, 1, 3))


def check(told: Sequence[TokenLogprobs], expected: Sequence[TokenLogprobs]) -> None:
    """Compare logprobs: of the same tokens, and equal but for rounding, which depends on how a prompt is cut."""
    assert [entry.token_id for entry in told] == [entry.token_id for entry in expected]
    assert [entry.logprob for entry in told] == pytest.approx([entry.logprob for entry in expected], abs=1e-3)
    for one, other in zip(told, expected, strict=True):
        assert [logprob for _, logprob in one.top] == pytest.approx([logprob for _, logprob in other.top], abs=1e-3)


@pytest.mark.parametrize("seed", range(16))
async def test_every_way_to_write_an_answer_writes_what_one_engine_does(
    seed: int, pair: WorkerPair, engines: tuple[Engine, Engine, Engine]
) -> None:
    prompt, sampling, choices = random_sampling(seed)
    expected: list[SingleAnswer] = []
    for choice in range(choices):
        own = replace(sampling, seed=choice_seed(sampling.seed, choice))
        expected.append(generate_answer(engines[2], prompt, own))
    for split in (True, False):
        answers = await pair.client.several(f"s{split}", prompt, choices, sampling, split=split)
        for answer, single in zip(answers, expected, strict=True):
            assert answer.tokens == list(single.token_ids)
            check(answer.logprobs, single.logprobs)
            check(answer.prompt_logprobs, single.prompt_logprobs)
    for choice, single in enumerate(expected):
        await _check_resumed(pair, prompt, replace(sampling, seed=choice_seed(sampling.seed, choice)), single)


async def _check_resumed(pair: WorkerPair, prompt: list[int], sampling: Sampling, single: SingleAnswer) -> None:
    """Let an answer go on elsewhere after some of its tokens, as the router does after a failure."""
    for kept in sorted({1, len(single.token_ids) // 2, len(single.token_ids) - 1} - {0, len(single.token_ids)}):
        rest = replace(sampling, max_tokens=sampling.max_tokens - kept, prompt_logprobs=None)
        longer = [*prompt, *single.token_ids[:kept]]
        for split in (True, False):
            (answer,) = await pair.client.several(f"r{sampling.seed}{kept}{split}"[:64], longer, 1, rest, split=split)
            assert answer.tokens == list(single.token_ids[kept:])
            check(answer.logprobs, single.logprobs[kept:])
