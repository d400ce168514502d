"""The hash engine answers as the oracle does, whatever its steps are made of."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.errors import InvalidField, PartUnavailable
from cluster_core.layout import KvLayout
from cluster_core.sampling import Grammar, GrammarKind, choice_seed
from inference_engine.hash_lm import HashEngine, HashPool
from inference_engine.hash_model import hash_answer
from inference_engine.step import SequenceSlice, StepPlan
from inference_engine.step_faults import NotDrawn
from tests.inference_engine.hash_models import Running, dice_of, finish, hash_model, hash_sampling, random_tokens

SHAPES = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([1, 2, 4, 16]),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "layers": st.integers(1, 3),
        "kv_heads": st.integers(1, 2),
        "head_dim": st.integers(1, 5),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), draws=st.integers(0, 1 << 32))
def test_any_chunks_and_any_batches_give_the_oracles_answers(
    shape: dict[str, int], lengths: list[int], draws: int
) -> None:
    model, dice = hash_model(**shape), dice_of(draws)  # type: ignore[arg-type]  # keys pass through
    blocks = [model.layout.blocks_for(length + 6) for length in lengths]
    engine = HashEngine(model, sum(blocks))
    free = dice.sample(range(sum(blocks)), sum(blocks))
    running = []
    for length, count in zip(lengths, blocks, strict=True):
        temperature, seed = dice.choice([(0.0, 0), (0.7, dice.randrange(9))])
        sampling = hash_sampling(dice.randint(1, 6), temperature, seed)
        running.append(Running(random_tokens(length, dice.randrange(99)), sampling, [free.pop() for _ in range(count)]))
    finish(engine, running, dice)
    for one in running:
        assert one.answer == hash_answer(model, one.prompt, one.sampling)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, shared=st.integers(0, 30), draws=st.integers(0, 1 << 32))
def test_cached_blocks_serve_a_prompt_with_the_same_beginning(shape: dict[str, int], shared: int, draws: int) -> None:
    model, dice = hash_model(**shape), dice_of(draws)  # type: ignore[arg-type]  # keys pass through
    size = model.layout.block_size_tokens
    first = Running(random_tokens(shared + 9), hash_sampling(3), range(60))
    engine = HashEngine(model, 120)
    finish(engine, [first], dice)
    cached = shared // size
    second = Running(
        [*first.prompt[: cached * size], *random_tokens(dice.randint(1, 20), 7)],
        hash_sampling(5, 1.0, 3),
        [*range(cached), *range(60, 120)],
        computed=cached * size,
    )
    finish(engine, [second], dice)
    assert second.answer == hash_answer(model, second.prompt, second.sampling)


@settings(max_examples=40, deadline=None)
@given(
    guesses=st.lists(st.booleans(), min_size=1, max_size=5),
    length=st.integers(1, 20),
    temperature=st.sampled_from([0, 1]),
)
def test_a_draft_is_taken_as_far_as_it_comes_true(guesses: list[bool], length: int, temperature: float) -> None:
    model = hash_model()
    prompt, sampling = random_tokens(length), hash_sampling(9, temperature, 5)
    right = hash_answer(model, prompt, sampling)
    engine = HashEngine(model, 10)
    drafted = [token if true else token ^ 1 for token, true in zip(right, guesses, strict=False)]
    piece = SequenceSlice(
        token_ids=[*prompt, *drafted], start=0, block_table=range(10), draw=sampling, drafted=len(drafted)
    )
    (result,) = engine.step(StepPlan(slices=(piece,))).slices
    true = guesses.index(False) if False in guesses else len(guesses)
    assert list(result.token_ids) == right[: true + 1]


def test_a_draft_ends_at_a_stop_token() -> None:
    model = hash_model()
    prompt = random_tokens(5)
    right = hash_answer(model, prompt, hash_sampling(4))
    stopping = hash_sampling(4, stop_token_ids=frozenset({right[1]}))
    piece = SequenceSlice(token_ids=[*prompt, *right[:3]], start=0, block_table=range(4), draw=stopping, drafted=3)
    (result,) = HashEngine(model, 4).step(StepPlan(slices=(piece,))).slices
    assert list(result.token_ids) == right[:2] == hash_answer(model, prompt, stopping)


def test_forks_draw_each_with_its_own_seed() -> None:
    model, prompt = hash_model(), random_tokens(11)
    seeds = tuple(choice_seed(5, choice) for choice in range(4))
    piece = SequenceSlice(
        token_ids=prompt, start=0, block_table=range(3), draw=hash_sampling(1, 1.0, seeds[0]), forks=seeds[1:]
    )
    (result,) = HashEngine(model, 3).step(StepPlan(slices=(piece,))).slices
    answers = [hash_answer(model, prompt, hash_sampling(1, 1.0, seed)) for seed in seeds]
    assert [[token] for token in (*result.token_ids, *result.fork_token_ids)] == answers
    assert len({answer[0] for answer in answers}) == 4


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"logprobs": 0}, "logprobs"),
        ({"prompt_logprobs": 2}, "prompt_logprobs"),
        ({"temperature": 1.0, "top_p": 0.9}, "top_p"),
        ({"temperature": 1.0, "top_k": 4}, "top_k"),
        ({"temperature": 1.0, "min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"logit_bias": ((1, 2.0),)}, "logit_bias"),
        ({"banned_sequences": ((1,),)}, "bad_words"),
        ({"min_tokens": 2, "stop_token_ids": frozenset({1})}, "min_tokens"),
        ({"forced_token_ids": (3,)}, "forced_token_ids"),
        ({"logprobs": 1, "min_tokens": 2, "top_p": 0.5}, "logprobs"),
    ],
)
def test_what_needs_logits_is_refused_in_its_slice_alone(asked: dict[str, object], field: str) -> None:
    sampling = hash_sampling(4, **asked)  # type: ignore[arg-type]  # fields pass through
    engine = HashEngine(hash_model(), 2)
    bad = SequenceSlice(
        token_ids=[1], start=0, block_table=[0], draw=sampling, prompt_logprobs=sampling.prompt_logprobs
    )
    good = SequenceSlice(token_ids=[1], start=0, block_table=[1], draw=hash_sampling())
    with pytest.raises(NotDrawn, match=rf"^sampling_params\.{field}: the hash model has no logits") as refused:
        engine.step(StepPlan(slices=(good, bad)))
    assert refused.value.places == (1,)
    with pytest.raises(InvalidField, match=rf"^sampling_params\.{field}"):
        hash_answer(hash_model(), [1], sampling)


@pytest.mark.parametrize(
    "asked", [{"top_p": 0.5, "top_k": 3, "min_p": 0.1}, {"min_tokens": 4}, {"temperature": 1.0, "min_tokens": 4}]
)
def test_what_changes_no_draw_is_not_refused(asked: dict[str, object]) -> None:
    assert len(hash_answer(hash_model(), [1], hash_sampling(4, **asked))) == 4  # type: ignore[arg-type]  # as above


async def test_a_grammar_is_refused_by_the_name_of_its_field() -> None:
    with pytest.raises(InvalidField, match=r"^sampling_params\.regex: the hash model has no logits"):
        await HashEngine(hash_model(), 1).grammars.prepare(Grammar(kind=GrammarKind.REGEX, text="a"))


def test_a_step_takes_the_time_that_is_set() -> None:
    slept: list[float] = []
    model = hash_model(prefill_tokens_per_s=100.0, decode_step_s=0.25)
    engine = HashEngine(model, 8, clock=lambda: sum(slept), sleep=slept.append)
    reads = SequenceSlice(token_ids=random_tokens(10), start=0, block_table=[0, 1, 2], draw=None)
    writes = [
        SequenceSlice(token_ids=[7], start=3, block_table=[block], draw=hash_sampling(), drafted=0) for block in (3, 4)
    ]
    guesses = SequenceSlice(token_ids=[7, 8, 9], start=1, block_table=[5], draw=hash_sampling(), drafted=2)
    for slices in ([reads], writes, [*writes, reads, guesses]):
        engine.step(StepPlan(slices=tuple(slices)))
    assert slept == pytest.approx([0.1, 0.25, 0.35])
    result = engine.step(StepPlan(slices=(reads,)))
    assert result.elapsed_s == pytest.approx(0.1)


def test_the_pool_has_the_layout_of_every_engine() -> None:
    layout = KvLayout(layers=2, kv_heads=3, head_dim=5, block_size_tokens=4, dtype="bfloat16")
    pool = HashPool(layout, 3)
    tokens = [bytes([token]) * layout.token_bytes for token in range(1, 5)]
    pool.write([0, 2], 4, b"".join(tokens))
    head = b"".join(bytes([token]) * 10 for token in range(1, 5))
    assert pool.buffer(2).tobytes() == head * (2 * 2 * 3)
    pool.clear_unused(2, 1)
    assert pool.buffer(2).tobytes() == (head[:10] + bytes(30)) * (2 * 2 * 3)
    pool.copy_block(2, 1)
    assert pool.read_one([0, 1], 4) == tokens[0]
    assert not pool.buffer(0).any()
    assert pool.block_bytes == layout.block_bytes == len(pool.buffer(1))


@pytest.mark.parametrize("blocks", [1 << 32, 1 << 60])
def test_more_memory_than_there_is_is_refused_in_one_line(blocks: int) -> None:
    model = hash_model(block_size=1024, layers=1024)
    with pytest.raises(PartUnavailable, match=r"^total_blocks: \d+ blocks take .* GiB, which this machine"):
        HashEngine(model, blocks)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_with_the_hash_engine_does_without_torch(role: str) -> None:
    check = (
        "import sys; "
        f"from {role}_worker.wiring import build_worker; "
        "document = {'model': {'implementation': 'hash'}, 'transfer': {'transport': 'loopback'}}; "
        f"worker = build_worker(document, '{role}-0', 'redis://127.0.0.1:1'); "
        "engine = worker._load_engine(); "
        "assert engine.identity.name == 'hash'; "
        "heavy = {'torch', 'numba', 'safetensors', 'transformers', 'llguidance'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
