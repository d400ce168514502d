"""One suite over all attention back ends: each must read the pool as a plain softmax over the gathered tokens does."""

import math
from collections.abc import Callable

import pytest
import torch

from cluster_core.layout import KvLayout
from inference_engine.attention import AttentionBackend
from inference_engine.attention_capped import CappedAttention
from inference_engine.attention_compiled import CompiledAttention
from inference_engine.attention_reference import ReferenceAttention
from inference_engine.batch import build_batch
from inference_engine.kv_pool import KvPool
from inference_engine.step import SequenceSlice, StepPlan

BLOCK_TOKENS = 16
BLOCKS = 80
LAYER = 1
HEADS = {"mha": (4, 4), "gqa": (6, 2), "mqa": (8, 1)}
TOLERANCE = {"float32": 3e-6, "bfloat16": 2e-2}
"""Absolute, for outputs of about 1: bfloat16 has 8 bits."""

# (tokens in the step, tokens before them)
SHAPES = {
    "one token": [(1, 0)],
    "a whole prompt": [(100, 0)],
    "a chunk in mid-prompt": [(33, 50)],
    "decode": [(1, 15), (1, 16), (1, 17), (1, 200)],
    "ragged mix": [(40, 0), (1, 70), (17, 16), (1, 1), (64, 129)],
}


def cuda_missing() -> str:
    return "" if torch.cuda.is_available() else "varlen_attn has no CPU kernel and there is no CUDA device here"


def make_varlen(pool: KvPool) -> AttentionBackend:
    from inference_engine.attention_varlen import VarlenAttention  # noqa: PLC0415 - only where there is CUDA

    return VarlenAttention(pool)


def make_triton(pool: KvPool) -> AttentionBackend:
    from inference_engine.attention_triton import TritonAttention  # noqa: PLC0415 - after its interpreter is chosen

    return TritonAttention(pool)


BACKENDS: dict[str, Callable[[KvPool], AttentionBackend]] = {
    "reference": ReferenceAttention,
    "capped": CappedAttention,
    "compiled": lambda pool: CompiledAttention(pool, 1),
    "compiled, 2 threads": lambda pool: CompiledAttention(pool, 2),
    "varlen": make_varlen,
    "triton": make_triton,
}
ON_CUDA = ("varlen", "triton") if torch.cuda.is_available() else ()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "varlen" and cuda_missing():
        pytest.skip(cuda_missing())
    return name


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest, backend: str) -> str:
    if backend == "varlen" and request.param == "float32":
        pytest.skip("flash attention computes bfloat16 only")
    return str(request.param)


class Case:
    """A pool full of noise and a plan over blocks in random order."""

    def __init__(
        self,
        backend: str,
        dtype: str,
        heads: str,
        shape: list[tuple[int, int]],
        head_dim: int = 16,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        self.heads, kv_heads = HEADS[heads]
        self.block_tokens = block_tokens
        layout = KvLayout(layers=2, kv_heads=kv_heads, head_dim=head_dim, block_size_tokens=block_tokens, dtype=dtype)
        device = torch.device("cuda" if backend in ON_CUDA else "cpu")
        random = torch.Generator().manual_seed(5)
        self.pool = KvPool(layout, BLOCKS, device)
        self.pool.storage.copy_(torch.randn(self.pool.storage.shape, generator=random))
        order = torch.randperm(BLOCKS, generator=random).tolist()
        pieces = []
        for tokens, before in shape:
            blocks = layout.blocks_for(tokens + before)
            table, order = order[:blocks], order[blocks:]
            pieces.append(SequenceSlice(token_ids=[0] * tokens, start=before, block_table=table, draw=None))
        self.pieces = pieces
        self.batch = build_batch(StepPlan(slices=tuple(pieces)), block_tokens, device)
        rows = sum(tokens for tokens, _ in shape)
        noise = torch.randn((rows, self.heads, head_dim), generator=random)
        self.query = noise.to(self.pool.storage.dtype).to(device)
        self.attention = BACKENDS[backend](self.pool)

    def attend(self, window: int = 0) -> torch.Tensor:
        with torch.inference_mode():
            return self.attention.prepare(self.batch).attend(self.query, LAYER, window).float().cpu()

    def expected(self, window: int = 0) -> torch.Tensor:
        """Straight from the definition, in float64."""
        query = self.query.double().cpu()
        layer = self.pool.storage[:, LAYER].double().cpu()  # [blocks, 2, kv_heads, block tokens, head_dim]
        group = self.heads // layer.shape[2]
        outputs: list[torch.Tensor] = []
        first = 0
        for piece in self.pieces:
            end = first + len(piece.token_ids)
            context = torch.arange(piece.start + len(piece.token_ids))
            blocks = torch.tensor(piece.block_table)[context // self.block_tokens]
            pairs = layer[blocks, :, :, context % self.block_tokens].repeat_interleave(
                group, 2
            )  # [tokens, 2, heads, dim]
            scores = torch.einsum("rhd,thd->hrt", query[first:end], pairs[:, 0]) / math.sqrt(pairs.shape[3])
            age = context[piece.start :, None] - context[None, :]  # of each token, seen from each row
            hidden = (age < 0) | (age >= (window or len(context)))
            weights = scores.masked_fill(hidden, -math.inf).softmax(2)
            outputs.append(torch.einsum("hrt,thd->rhd", weights, pairs[:, 1]))
            first = end
        return torch.cat(outputs).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("heads", HEADS)
def test_equals_the_definition(backend: str, dtype: str, heads: str, shape: str) -> None:
    if backend == "triton" and not ON_CUDA and heads != "gqa" and (shape, dtype) != ("ragged mix", "float32"):
        pytest.skip("Triton's interpreter takes a second a case; the others do not depend on the heads")
    case = Case(backend, dtype, heads, SHAPES[shape])
    for window in (0, 20):
        torch.testing.assert_close(case.attend(window), case.expected(window), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_head_sizes(backend: str, dtype: str, head_dim: int) -> None:
    case = Case(backend, dtype, "gqa", [(20, 30), (1, 90)], head_dim)
    torch.testing.assert_close(case.attend(), case.expected(), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("block_tokens", [1, 3, 64])
def test_block_sizes(backend: str, dtype: str, block_tokens: int) -> None:
    case = Case(backend, dtype, "gqa", [(20, 13), (1, 40)], block_tokens=block_tokens)
    for window in (0, 7):
        torch.testing.assert_close(case.attend(window), case.expected(window), rtol=0, atol=TOLERANCE[dtype])


def test_large_scores_neither_overflow_nor_vanish(backend: str, dtype: str) -> None:
    case = Case(backend, dtype, "gqa", SHAPES["ragged mix"])
    case.query *= 60
    torch.testing.assert_close(case.attend(), case.expected(), rtol=0, atol=max(1e-3, TOLERANCE[dtype]))


def test_what_a_row_may_not_see_has_no_effect(backend: str, dtype: str) -> None:
    case = Case(backend, dtype, "gqa", [(5, 40)])
    before = case.attend(window=8)
    piece = case.pieces[0]
    for token in [*range(33), *range(45, 48)]:  # before the first row's window, and past the sequence's end
        case.pool.storage[piece.block_table[token // BLOCK_TOKENS], :, :, :, token % BLOCK_TOKENS] = 1000
    assert torch.equal(case.attend(window=8), before)


@pytest.mark.parametrize("part", [0, 1])
def test_a_key_or_value_that_is_no_number_shows_in_the_rows_that_see_it_alone(
    backend: str, dtype: str, part: int
) -> None:
    case = Case(backend, dtype, "gqa", [(5, 40), (1, 30)])
    case.pool.storage[case.pieces[0].block_table[0], LAYER, part, :, 3] = math.nan
    broken = case.attend().isnan()
    assert broken[:5].all()
    assert not broken[5].any()


def test_two_threads_compute_what_one_does() -> None:
    shape = [(70, 900), (1, 200)]
    alone, together = (Case(name, "float32", "mha", shape) for name in ("compiled", "compiled, 2 threads"))
    assert torch.equal(alone.attend(), together.attend())
