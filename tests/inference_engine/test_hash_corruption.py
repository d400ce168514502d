"""Every kind of wrong block changes the answer of the hash engine: that is what it is for."""

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine.hash_lm import HashEngine
from inference_engine.hash_model import hash_answer
from tests.inference_engine.hash_models import Running, dice_of, finish, hash_model, hash_sampling, random_tokens

SIZE = 4
MODEL = hash_model(block_size=SIZE)
BLOCK_BYTES = MODEL.layout.block_bytes
TOKENS = st.integers(2 * SIZE + 2, 30)
ANSWER_TOKENS = 4
SAMPLINGS = st.sampled_from([hash_sampling(ANSWER_TOKENS), hash_sampling(ANSWER_TOKENS, 1.0, 3)])


class ReadPrompt:
    """A prompt but its last token, whose KV lies in blocks that a test then damages."""

    def __init__(self, length: int, dice: Random) -> None:
        self.engine = HashEngine(MODEL, 40)
        self.prompt = random_tokens(length)
        self.table = dice.sample(range(20), MODEL.layout.blocks_for(length + ANSWER_TOKENS))
        self.computed = length - 1
        self.read(self.prompt[:-1], self.table)

    def read(self, tokens: list[int], table: list[int]) -> None:
        finish(self.engine, [Running(tokens, hash_sampling(1), table)], dice_of(1))

    def block(self, place: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        found: np.ndarray[tuple[int], np.dtype[np.uint8]] = self.engine.memory.buffer(self.table[place])
        return found

    @property
    def full_blocks(self) -> int:
        return self.computed // SIZE

    def assert_all_wrong(self, running: Running) -> None:
        finish(self.engine, [running], dice_of(2))
        right = hash_answer(MODEL, self.prompt, running.sampling)
        assert all(one != other for one, other in zip(running.answer, right, strict=True))

    def running(self, sampling: object) -> Running:
        return Running(self.prompt, sampling, self.table, computed=self.computed)  # type: ignore[arg-type]  # a Sampling


@settings(max_examples=20, deadline=None)
@given(length=TOKENS, sampling=SAMPLINGS, draws=st.integers(0, 1 << 32))
def test_undamaged_blocks_give_the_right_answer(length: int, sampling: object, draws: int) -> None:
    read = ReadPrompt(length, dice_of(draws))
    running = read.running(sampling)
    finish(read.engine, [running], dice_of(2))
    assert running.answer == hash_answer(MODEL, read.prompt, running.sampling)


@settings(max_examples=60, deadline=None)
@given(length=TOKENS, sampling=SAMPLINGS, change=st.integers(1, 255), draws=st.integers(0, 1 << 32))
def test_one_changed_byte(length: int, sampling: object, change: int, draws: int) -> None:
    dice = dice_of(draws)
    read = ReadPrompt(length, dice)
    position, byte = dice.randrange(read.computed), dice.randrange(MODEL.layout.token_bytes)
    kv = bytearray(read.engine.memory.read_one(read.table, position))
    kv[byte] ^= change
    read.engine.memory.write(read.table, position, bytes(kv))
    read.assert_all_wrong(read.running(sampling))


@settings(max_examples=20, deadline=None)
@given(length=TOKENS, sampling=SAMPLINGS, draws=st.integers(0, 1 << 32))
def test_two_blocks_in_each_others_place(length: int, sampling: object, draws: int) -> None:
    dice = dice_of(draws)
    read = ReadPrompt(length, dice)
    one, other = dice.sample(range(read.full_blocks), 2)
    read.table[one], read.table[other] = read.table[other], read.table[one]
    read.assert_all_wrong(read.running(sampling))


@settings(max_examples=20, deadline=None)
@given(length=TOKENS, sampling=SAMPLINGS, draws=st.integers(0, 1 << 32))
def test_a_stale_block_of_a_prompt_with_another_beginning(length: int, sampling: object, draws: int) -> None:
    dice = dice_of(draws)
    read = ReadPrompt(length, dice)
    place = dice.randrange(read.full_blocks)
    changed = list(read.prompt[:-1])
    changed[dice.randrange((place + 1) * SIZE)] ^= 1
    others = list(range(20, 40))
    read.read(changed, others)
    read.table[place] = others[place]
    read.assert_all_wrong(read.running(sampling))


@settings(max_examples=20, deadline=None)
@given(length=TOKENS, sampling=SAMPLINGS, draws=st.integers(0, 1 << 32), step=st.sampled_from([-1, 1]))
def test_a_block_shifted_by_one_token(length: int, sampling: object, draws: int, step: int) -> None:
    dice = dice_of(draws)
    read = ReadPrompt(length, dice)
    start = dice.randrange(read.full_blocks) * SIZE
    memory = read.engine.memory
    kv = [memory.read_one(read.table, position) for position in range(start, start + SIZE)]
    memory.write(read.table, start, b"".join(kv[step:] + kv[:step]))
    read.assert_all_wrong(read.running(sampling))


@settings(max_examples=20, deadline=None)
@given(length=TOKENS, sampling=SAMPLINGS, draws=st.integers(0, 1 << 32), cut=st.integers(1, BLOCK_BYTES - 1))
def test_a_block_of_which_only_a_part_arrived(length: int, sampling: object, draws: int, cut: int) -> None:
    dice = dice_of(draws)
    read = ReadPrompt(length, dice)
    block = read.block(dice.randrange(read.full_blocks))
    before = block.copy()
    block[cut:] = dice.choice([0, before[0]])
    if (block == before).all():  # the last byte was what now lies there
        block[-1] ^= 1
    read.assert_all_wrong(read.running(sampling))


@settings(max_examples=20, deadline=None)
@given(length=TOKENS, sampling=SAMPLINGS, draws=st.integers(0, 1 << 32))
def test_a_table_that_lacks_a_block(length: int, sampling: object, draws: int) -> None:
    dice = dice_of(draws)
    read = ReadPrompt(length, dice)
    del read.table[dice.randrange(read.full_blocks)]
    read.table.append(39)
    read.assert_all_wrong(read.running(sampling))


def test_the_same_tokens_under_another_seed_are_another_model() -> None:
    prompt, sampling = random_tokens(9), hash_sampling()
    answers = [hash_answer(hash_model(seed=seed), prompt, sampling) for seed in (0, 1)]
    assert all(one != other for one, other in zip(*answers, strict=True))
    assert len({hash_model(seed=seed).identity.fingerprint for seed in (0, 1)}) == 2


def test_the_slots_after_the_last_token_are_not_read() -> None:
    read = ReadPrompt(2 * SIZE + 2, dice_of(0))
    read.engine.memory.write(read.table, len(read.prompt), b"\xff" * MODEL.layout.token_bytes)
    running = read.running(hash_sampling(1))
    finish(read.engine, [running], dice_of(2))
    assert running.answer == hash_answer(MODEL, read.prompt, running.sampling)
