"""Where every layer has a window, old blocks go back while the sequence runs, and nothing that follows is another."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_core.hash_chain import chain_hashes
from cluster_core.holds import RequestHold
from cluster_core.identity import Attempt, RequestId
from cluster_core.layout import blocks_in_window, first_block_in_window
from cluster_core.sampling import Sampling
from inference_engine.block_pool import BlockPool
from inference_engine.engine import Engine
from inference_engine.model_folder import layout_of, open_model_folder
from inference_engine.sequence import TokenSequence
from inference_engine.settings import EngineSettings, ModelSettings
from inference_engine.single import generate
from inference_engine.step import SequenceSlice, StepPlan
from tests.inference_engine.conftest import Models
from tests.model_fixtures import make_model, prompt_tokens

ROOT = b"root"
SIZE = 4
WINDOWS = (1, 2, 5, 9, 16, 17)


def make(pool: BlockPool, tokens: list[int], window: int, name: str = "a", size: int = SIZE) -> TokenSequence:
    hold = RequestHold(RequestId(name), Attempt(1))
    return TokenSequence(
        pool=pool, hold=hold, root=ROOT, token_ids=tokens, block_size_tokens=size, window_tokens=window
    )


def held(sequence: TokenSequence) -> int:
    return len(sequence.block_table) - sequence.dropped


def check(sequence: TokenSequence, pool: BlockPool, window: int, size: int = SIZE) -> None:
    """Check that what no token reads is given back, what one reads is held, and the table names no other's block."""
    pool.audit()
    assert sequence.dropped >= first_block_in_window(sequence.computed, window, size)
    kept = sequence.block_table[sequence.dropped :]
    assert set(sequence.block_table) == set(kept)
    assert all(sequence._hold in pool.holds(index) for index in kept)


@given(st.sampled_from(WINDOWS), st.lists(st.integers(0, 9), min_size=1, max_size=60), st.data())
def test_a_sequence_holds_a_window_and_a_chunk(window: int, tokens: list[int], data: st.DataObject) -> None:
    pool = BlockPool(20)
    sequence = make(pool, tokens, window)
    filled = []
    while sequence.pending:
        count = data.draw(st.integers(1, min(9, sequence.pending)))
        sequence.reserve(sequence.computed + count)
        assert held(sequence) <= blocks_in_window(window, SIZE) + -(-count // SIZE)
        filled += sequence.advance(count)
        check(sequence, pool, window)
        assert len(sequence.block_table) == -(-sequence.computed // SIZE)
    assert held(sequence) <= blocks_in_window(window, SIZE)
    tail = first_block_in_window(len(tokens), window, SIZE)
    assert [block.position for block in filled] == list(range(tail, len(tokens) // SIZE))
    assert [block.hash for block in filled] == chain_hashes(ROOT, tokens, SIZE)[tail:]
    sequence.give_back()
    assert pool.counts().held == 0
    pool.audit()


@given(st.sampled_from(WINDOWS), st.integers(1, 60), st.integers(6, 30), st.data())
def test_the_cache_needs_only_the_last_window(window: int, length: int, blocks: int, data: st.DataObject) -> None:
    """Whatever the cache has forgotten, what is attached is the whole of what the next token sees."""
    pool, tokens = BlockPool(blocks), list(range(length))
    writer = make(pool, tokens, window)
    while writer.pending:
        count = min(SIZE, writer.pending)
        writer.reserve(writer.computed + count)
        writer.advance(count)
    known = {block_hash: index for index, block_hash in _sealed(pool).items()}
    writer.give_back()
    others = make(pool, [], 0, "others")
    others.reserve(SIZE * data.draw(st.integers(0, blocks - blocks_in_window(window, SIZE))))
    reader = make(pool, tokens, window, "reader")
    if data.draw(st.booleans()) and -(-length // SIZE) <= pool.available():
        reader.reserve(length)
    known = {block_hash: index for block_hash, index in known.items() if block_hash in pool.cached_hashes()}
    limit = data.draw(st.integers(0, length))
    reader.attach_cached(limit)
    check(reader, pool, window)
    hashes = chain_hashes(ROOT, tokens, SIZE)
    seen = range(first_block_in_window(reader.computed, window, SIZE), reader.computed // SIZE)
    assert [reader.block_table[position] for position in seen] == [known[hashes[position]] for position in seen]
    assert reader.computed == reader.cached <= limit
    longest = max(
        end
        for end in range(limit // SIZE + 1)
        if all(hashes[i] in known for i in range(first_block_in_window(end * SIZE, window, SIZE), end))
    )
    assert reader.computed == longest * SIZE
    reader.give_back()
    others.give_back()
    pool.audit()


def _sealed(pool: BlockPool) -> dict[int, bytes]:
    return {pool._by_hash[block_hash]: block_hash for block_hash in pool.cached_hashes()}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", [1, 4, 7, 17, 33])
def test_an_import_needs_only_the_tail(window: int, length: int) -> None:
    pool, tokens = BlockPool(24), list(range(length))
    tail = first_block_in_window(length, window, SIZE)
    sequence = make(pool, tokens, window)
    sequence.start_at_tail()
    assert sequence.attach_cached(length) == []
    sequence.reserve_ahead(length + 1)
    assert (sequence.dropped, sequence.computed, sequence.cached) == (tail, tail * SIZE, 0)
    assert len(sequence.block_table) == -(-(length + 1) // SIZE)
    check(sequence, pool, window)
    sequence.advance(sequence.pending)
    assert pool.cached_hashes() == chain_hashes(ROOT, tokens, SIZE)[tail:]

    again = make(pool, tokens, window, "again")
    again.start_at_tail()
    again.attach_cached(length)
    assert again.cached == (length // SIZE - tail) * SIZE
    assert again.block_table[tail:] == sequence.block_table[tail : length // SIZE]
    again.reserve_ahead(length + 1)
    check(again, pool, window)
    for each in (again, sequence):
        each.give_back()
    pool.audit()
    assert pool.counts().held == 0


def test_without_a_window_nothing_is_dropped() -> None:
    pool = BlockPool(24)
    sequence = make(pool, list(range(50)), 0)
    sequence.start_at_tail()
    sequence.reserve_ahead(51)
    assert len(sequence.advance(50)) == 12
    assert (sequence.dropped, held(sequence)) == (0, 13)


@pytest.mark.parametrize(("kind", "window"), [("mistral", 24), ("qwen2_window", 0), ("llama", 0)])
def test_the_layout_knows_the_window_of_all_layers_alone(models: Models, kind: str, window: int) -> None:
    layout = layout_of(models.opened(kind).config, EngineSettings())
    assert layout.window_tokens == window
    assert f"window_tokens={window}" in layout.describe()


class Answering:
    """A model with a window, run with blocks that go back: their memory is spoilt as soon as nobody holds them."""

    def __init__(self, folder: Path, attention: str, blocks: int = 40) -> None:
        opened = open_model_folder(ModelSettings(path=str(folder)))
        settings_ = EngineSettings(threads=1, block_size_tokens=SIZE, attention=attention)
        self.engine = Engine.load(opened, settings_, blocks)
        self.window = self.engine.layout.window_tokens

    def write(self, prompt: list[int], chunk: int, sampling: Sampling) -> list[int]:
        pool = BlockPool(self.engine.memory.total_blocks)
        sequence = make(pool, prompt, self.window)
        while len(sequence.token_ids) < len(prompt) + sampling.max_tokens:
            count = min(chunk, sequence.pending)
            sequence.reserve(sequence.computed + count)
            assert held(sequence) <= blocks_in_window(self.window, SIZE) + -(-chunk // SIZE)
            for index in range(self.engine.memory.total_blocks):
                if sequence._hold not in pool.holds(index):
                    self.engine.memory.storage[index] = float("nan")
            end = sequence.computed + count
            piece = SequenceSlice(
                token_ids=sequence.token_ids[sequence.computed : end],
                start=sequence.computed,
                block_table=sequence.block_table,
                draw=sampling if count == sequence.pending else None,
            )
            result = self.engine.step(StepPlan(slices=(piece,)))
            sequence.advance(count)
            for token in result.slices[0].token_ids:
                sequence.append(token)
            pool.audit()
        return sequence.token_ids[len(prompt) :]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("windows")
    return {window: make_model(root / str(window), "mistral", sliding_window=window) for window in (2, 5, 24)}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    window=st.sampled_from([2, 5, 24]),
    attention=st.sampled_from(["compiled", "reference"]),
    length=st.integers(1, 100),
    chunk=st.integers(1, 40),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_answers_are_those_of_an_engine_that_frees_nothing(
    folders: dict[int, Path], window: int, attention: str, length: int, chunk: int, temperature: float
) -> None:
    sampling = Sampling(
        temperature=temperature, top_p=1.0, top_k=0, seed=length, max_tokens=30, stop_token_ids=frozenset()
    )
    prompt = prompt_tokens(length)
    freeing, keeping = _engines(folders[window], attention)
    assert freeing.write(prompt, chunk, sampling) == generate(keeping.engine, prompt, sampling, chunk)


@cache
def _engines(folder: Path, attention: str) -> tuple[Answering, Answering]:
    return Answering(folder, attention), Answering(folder, attention)
