"""What Triton's back end promises beyond the contract, in its interpreter where there is no GPU."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from inference_engine.batch import Batch, build_batch
from inference_engine.step import SequenceSlice, StepPlan
from tests.inference_engine.test_attention_contract import LAYER, TOLERANCE, Case

pytest.importorskip("triton")


def batch_of(*slices: tuple[int, int]) -> Batch:
    """Slices of (tokens in the step, tokens before them)."""
    pieces = [
        SequenceSlice(token_ids=[0] * tokens, start=before, block_table=range(99), draw=None)
        for tokens, before in slices
    ]
    return build_batch(StepPlan(slices=tuple(pieces)), 16, torch.device("cpu"))


def test_slices_that_fit_one_small_tile_are_one_and_the_others_are_cut() -> None:
    from inference_engine.attention_triton import TileShape, cut_tiles  # noqa: PLC0415

    few = TileShape(queries=16, strip=32, warps=4, stages=2)
    many = TileShape(queries=32, strip=32, warps=4, stages=2)
    small, large = cut_tiles(batch_of((1, 9), (20, 100), (4, 7), (5, 0)), 4, (few, many))
    assert small.tolist() == [[0, 0, 1, 9], [2, 21, 4, 7]]
    assert large.tolist() == [[1, 1, 8, 100], [1, 9, 8, 108], [1, 17, 4, 116], [3, 25, 5, 0]]
    assert small.dtype == large.dtype == np.int32


@pytest.mark.parametrize(("context", "parts"), [(1, 1), (128, 1), (129, 2), (2048, 16), (100_000, 16)])
def test_keys_are_split_by_the_context_alone(context: int, parts: int) -> None:
    from inference_engine.attention_triton import TileShape, most_splits  # noqa: PLC0415

    assert most_splits(context, TileShape(queries=16, strip=64, warps=4, stages=3)) == parts


@pytest.mark.parametrize("most", [16, 2])
def test_a_long_context_is_split_and_joined(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr("inference_engine.attention_triton.SPLITS", most)
    case = Case("triton", "float32", "gqa", [(1, 300), (3, 130)])
    for window in (0, 200):
        torch.testing.assert_close(case.attend(window), case.expected(window), rtol=0, atol=TOLERANCE["float32"])


def test_company_changes_nothing_in_a_row_bit_for_bit() -> None:
    alone = Case("triton", "float32", "gqa", [(1, 90)])
    together = Case("triton", "float32", "gqa", [(1, 90), (1, 300), (20, 3)])
    together.pool.storage.copy_(alone.pool.storage)
    together.query[:1] = alone.query
    assert alone.pieces[0].block_table == together.pieces[0].block_table
    assert torch.equal(alone.attend()[0], together.attend()[0])


def test_head_sizes_that_are_no_power_of_two() -> None:
    case = Case("triton", "float32", "gqa", [(5, 30), (1, 50)], head_dim=20)
    torch.testing.assert_close(case.attend(), case.expected(), rtol=0, atol=TOLERANCE["float32"])


def test_a_pool_that_lies_in_memory_in_another_order() -> None:
    from inference_engine.attention_triton import TritonAttention  # noqa: PLC0415

    case = Case("triton", "float32", "gqa", [(5, 30), (1, 50)])
    expected = case.expected()
    storage = case.pool.storage
    case.pool.storage = storage.permute(3, 1, 5, 0, 2, 4).contiguous().permute(3, 1, 4, 0, 5, 2)
    assert torch.equal(case.pool.storage, storage)
    assert not case.pool.storage.is_contiguous()
    case.attention = TritonAttention(case.pool)
    torch.testing.assert_close(case.attend(), expected, rtol=0, atol=TOLERANCE["float32"])


def test_a_query_that_is_a_part_of_a_larger_tensor() -> None:
    case = Case("triton", "float32", "gqa", [(5, 30)])
    expected = case.expected()
    case.query = torch.cat((case.query, torch.full_like(case.query, math.nan)), dim=1)[:, : case.heads]
    torch.testing.assert_close(case.attend(), expected, rtol=0, atol=TOLERANCE["float32"])


def test_one_row_a_sequence_from_tables_that_are_on_the_device() -> None:
    from inference_engine.attention_triton import TritonAttention  # noqa: PLC0415

    case = Case("triton", "float32", "gqa", [(1, 40), (1, 170)])
    assert isinstance(case.attention, TritonAttention)
    device = case.pool.storage.device
    wide = torch.zeros((2, 50), dtype=torch.int32, device=device)  # tiles and tables are parts of a wider tensor
    step = case.attention.prepare_decode(wide[:, :4], wide[:, 7:], longest_context=200)
    wide[:, :4] = torch.tensor([[0, 0, 1, 40], [1, 1, 1, 170]])
    table = torch.from_numpy(case.batch.block_table)
    wide[:, 7 : 7 + table.shape[1]] = table
    with torch.inference_mode():
        attended = step.attend(case.query, LAYER, 0).cpu()
    torch.testing.assert_close(attended, case.expected(), rtol=0, atol=TOLERANCE["float32"])
    assert torch.equal(attended, case.attend())


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from inference_engine.attention_triton_kernel import attend_tiles, join_splits

def compiled(kernel, types, constants, **options):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

sizes = dict(HEADS=32, HEAD_DIM=128, STRIP=64, WIDTH=128, SPLITS=16, LEAST_STRIPS=2)
fixed = dict(SCALE=0.1, GROUP=4, BLOCK_SIZE=16, STRIDES=(1048576, 32768, 16384, 2048, 128, 1), FACTORS=tl.bfloat16)
memory = dict(query="*bf16", storage="*bf16", tiles="*i32", table="*i32", output="*bf16", logarithms="*bf16")
many = compiled(attend_tiles, memory, dict(sizes, **fixed, QUERIES=128, SPLIT=False), num_warps=8, num_stages=3)
assert "wgmma" in many
memory.update(output="*fp32", logarithms="*fp32")
few = compiled(attend_tiles, memory, dict(sizes, **fixed, QUERIES=16, SPLIT=True), num_warps=4, num_stages=3)
assert "mma.sync" in few
compiled(join_splits, dict(parts="*fp32", logarithms="*fp32", tiles="*i32", output="*bf16"), sizes)
"""


def test_hopper_gets_its_own_matrix_instructions(tmp_path: Path) -> None:
    """Triton compiles without a GPU; in a process of its own, as this one may interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", COMPILE], check=True, timeout=300, env=environment)
