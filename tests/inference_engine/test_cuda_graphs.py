"""Decode steps that are filled up and replayed, without a device: a graph here is a function that is called again."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from inference_engine.attention_reference import ReferenceAttention
from inference_engine.batch import Batch, build_batch
from inference_engine.cuda_graphs import SIZES, Captured, GraphedDecoder, decode_rows, padded_size, spare_rows
from inference_engine.decoder import Decoder
from inference_engine.kv_pool import KvPool
from inference_engine.model_config import ModelConfig
from inference_engine.model_folder import layout_of
from inference_engine.settings import EngineSettings
from inference_engine.step import SequenceSlice, StepPlan
from inference_engine.weights import load_weights
from tests.fake_engine import GREEDY
from tests.inference_engine.conftest import Models

CPU = torch.device("cpu")
BLOCKS = 32
BLOCK_TOKENS = 4


def batch_of(*slices: tuple[int, int, list[int]], drawn: bool = True) -> Batch:
    """Slices of (tokens in the step, tokens before them, block table)."""
    pieces = [
        SequenceSlice(token_ids=[7 + before] * tokens, start=before, block_table=table, draw=GREEDY if drawn else None)
        for tokens, before, table in slices
    ]
    return build_batch(StepPlan(slices=tuple(pieces)), BLOCK_TOKENS, CPU)


class TableAttention:
    """Reads tiles and tables when it attends, as kernels do, and then does as the reference."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool

    def prepare_decode(self, tiles: torch.Tensor, table: torch.Tensor, longest_context: int) -> "TableStep":
        assert longest_context == 64
        return TableStep(self._pool, tiles, table)


class TableStep:
    def __init__(self, pool: KvPool, tiles: torch.Tensor, table: torch.Tensor) -> None:
        self._pool, self._tiles, self._table = pool, tiles, table

    def attend(self, query: torch.Tensor, layer: int, window: int) -> torch.Tensor:
        sequences, first_rows, rows, positions = self._tiles.T
        assert sequences.tolist() == first_rows.tolist() == list(range(len(query)))
        assert rows.eq(1).all()
        nothing = torch.empty(0, dtype=torch.int64)
        batch = Batch(
            **dict.fromkeys(("token_ids", "positions", "slot_blocks", "slot_offsets", "draw_rows"), nothing),
            query_starts=np.arange(len(query) + 1, dtype=np.int32),
            context_lengths=positions.numpy() + 1,
            block_table=self._table.numpy(),
        )
        return ReferenceAttention(self._pool).prepare(batch).attend(query, layer, window)


class Recorder:
    """Captures work by remembering it."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []
        self.memory_for = max(SIZES)

    def __call__(self, work: Callable[[], torch.Tensor]) -> Captured:
        output = work()
        size = len(output)
        if size > self.memory_for:
            raise torch.OutOfMemoryError
        self.captured.append(size)

        def replay() -> None:
            self.replayed.append(size)
            output.copy_(work())

        return Captured(replay, output)


class Pair:
    """A decoder as it is, and one that replays; each has a pool of its own with the same noise."""

    def __init__(self, models: Models) -> None:
        folder = models.opened("llama")
        assert isinstance(folder.config, ModelConfig)
        settings = EngineSettings(block_size_tokens=BLOCK_TOKENS)
        layout = layout_of(folder.config, settings)
        with torch.inference_mode():
            weights = load_weights(folder, torch.float32, CPU)
        self.pools = [KvPool(layout, BLOCKS, CPU, spare_blocks=1) for _ in range(2)]
        noise = torch.randn(self.pools[0].storage.shape, generator=torch.Generator().manual_seed(3))
        for pool in self.pools:
            pool.storage.copy_(noise)
        plain, graphed = [Decoder(folder.config, weights, pool, ReferenceAttention(pool)) for pool in self.pools]
        self.recorder = Recorder()
        self.plain = plain
        self.graphed = GraphedDecoder(graphed, TableAttention(self.pools[1]), self.pools[1], 64, self.recorder)

    def check(self, batch: Batch) -> None:
        with torch.inference_mode():
            expected, logits = self.plain.logits(batch), self.graphed.logits(batch)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        ours, theirs = (pool.storage[:BLOCKS] for pool in self.pools)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def pair(models: Models) -> Pair:
    return Pair(models)


def test_sizes() -> None:
    assert [padded_size(count) for count in (1, 3, 9, 17, 64, 65, 256, 257)] == [1, 4, 16, 24, 64, 96, 256, None]


def test_rows_of_a_step_and_the_spare_ones() -> None:
    rows = decode_rows(batch_of((1, 9, [5, 3, 8]), (1, 0, [2])), 4, BLOCK_TOKENS, spare_block=99)
    assert rows.tolist() == [
        [0, 0, 1, 9, 8, 1, 5, 3, 8],
        [1, 1, 1, 0, 2, 0, 2, 0, 0],
        [2, 2, 1, 0, 99, 0, 99, 0, 0],
        [3, 3, 1, 0, 99, 0, 99, 0, 0],
    ]
    assert spare_rows(2, 99).tolist() == [[0, 0, 1, 0, 99, 0, 99], [1, 1, 1, 0, 99, 0, 99]]


def test_a_replayed_step_computes_what_the_decoder_does_and_writes_no_block_but_its_own(pair: Pair) -> None:
    pair.check(batch_of((1, 9, [5, 3, 8]), (1, 0, [2]), (1, 6, [7, 1])))
    pair.check(batch_of((1, 10, [5, 3, 8]), (1, 1, [2]), (1, 7, [7, 1]), (1, 63, list(range(16, 32)))))
    pair.check(batch_of((1, 11, [5, 3, 8]), (1, 2, [2]), (1, 12, [7, 1, 9, 10])))  # the fourth has gone
    pair.check(batch_of((1, 12, [5, 3, 8, 11])))
    assert pair.recorder.captured == [4, 1]
    assert pair.recorder.replayed == [4, 4, 4, 1]


def test_other_steps_are_computed_as_ever(pair: Pair) -> None:
    pair.check(batch_of((3, 0, [4])))  # a prompt
    pair.check(batch_of((1, 3, [4]), (2, 3, [5, 6])))  # a decode step and a draft
    pair.check(batch_of((1, 3, [4]), drawn=False))  # a chunk of one token
    assert not pair.recorder.captured


def test_a_block_table_wider_than_the_context_runs_without(pair: Pair) -> None:
    pair.check(batch_of((1, 67, list(range(17)))))
    assert not pair.recorder.captured


def test_where_memory_is_short_steps_of_that_size_run_without(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.recorder.memory_for = 1
    for start in (4, 5):
        pair.check(batch_of((1, start, [5, 3]), (1, start, [6, 7])))
    pair.check(batch_of((1, 4, [5, 3])))
    assert pair.recorder.captured == [1]
    assert [record.args for record in caplog.records] == [(2,)]


def test_graphs_can_be_captured_before_they_are_needed(pair: Pair) -> None:
    before = pair.pools[1].storage[:BLOCKS].clone()
    pair.graphed.capture_up_to(6)
    assert pair.recorder.captured == [1, 2, 4, 8]
    assert torch.equal(pair.pools[1].storage[:BLOCKS], before)
    pair.check(batch_of((1, 9, [5, 3, 8])))
    assert pair.recorder.captured == [1, 2, 4, 8]
