"""Published geometry in, published figures out. KV at 2 bytes a number unless said."""

import pytest

from cluster_core.capacity import (
    GroupedHeads,
    LatentHeads,
    ModelShape,
    copies_of_kv,
    held_blocks,
    hiding_gigabits_per_s,
    is_possible_degree,
    kv_heads_per_rank,
    moved_blocks,
    rank_token_bytes,
    seen_bytes,
    step_floor_s,
    token_bytes,
    transfer_s,
)
from cluster_core.capacity_fit import Serving, fit, possible_degrees
from cluster_core.capacity_gpus import GPUS

BLOCK = 16


def make(layers: int, heads: int, kv_heads: int, head_dim: int, *, window: int = 0, parameters: int = 0) -> ModelShape:
    return ModelShape(
        name="model",
        parameters=parameters,
        attention=GroupedHeads(heads=heads, kv_heads=kv_heads, head_dim=head_dim),
        windows=(window,) * layers,
        max_context_tokens=1 << 20,
    )


LLAMA_70B = make(80, 64, 8, 128)
LLAMA_70B_MHA = make(80, 64, 64, 128)
LLAMA_8B = make(32, 32, 8, 128)
LLAMA_7B = make(32, 32, 32, 128)
OPT_66B = make(64, 72, 72, 128)
TINY_LLAMA = make(22, 32, 4, 64)
MISTRAL = make(32, 32, 8, 128, window=4096)
DEEPSEEK_V3 = ModelShape(
    name="mla",
    parameters=0,
    attention=LatentHeads(heads=128, latent_dim=512, rotated_dim=64),
    windows=(0,) * 61,
    max_context_tokens=1 << 17,
)


@pytest.mark.parametrize(
    ("shape", "each", "of_4096"),
    [
        (make(12, 12, 12, 64), 36_864, 151),
        (make(40, 40, 40, 128), 819_200, 3_355),
        (OPT_66B, 2_359_296, 9_664),
        (make(96, 96, 96, 128), 4_718_592, 19_327),
        (LLAMA_7B, 524_288, 2_147),
        (LLAMA_70B_MHA, 2_621_440, 10_737),
        (LLAMA_70B, 327_680, 1_342),
        (LLAMA_8B, 131_072, 537),
        (make(126, 128, 8, 128), 516_096, 2_114),
        (make(16, 32, 8, 64), 32_768, 134),
        (make(24, 14, 2, 64), 12_288, 50),
        (make(28, 28, 4, 128), 57_344, 235),
        (make(36, 32, 8, 128), 147_456, 604),
        (MISTRAL, 131_072, 537),
        (make(40, 48, 1, 128), 20_480, 84),
        (make(32, 71, 1, 64), 8_192, 34),
        (DEEPSEEK_V3, 70_272, 288),
    ],
    ids=lambda value: value.name if isinstance(value, ModelShape) else str(value),
)
def test_kv_of_known_models(shape: ModelShape, each: int, of_4096: int) -> None:
    assert token_bytes(shape, 2) == each
    assert round(seen_bytes(shape, 4096, 2) / 1e6) == of_4096


def test_long_contexts() -> None:
    assert seen_bytes(LLAMA_70B, 131_072, 2) == 40 << 30
    assert seen_bytes(LLAMA_70B_MHA, 32_768, 2) == 80 << 30
    assert 50 * seen_bytes(LLAMA_70B_MHA, 32_768, 2) / 1e12 == pytest.approx(4.29, abs=0.005)
    assert seen_bytes(MISTRAL, 32_768, 2) == seen_bytes(MISTRAL, 4_096, 2) == seen_bytes(LLAMA_8B, 32_768, 2) // 8


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "each", "copies"),
    [
        *((64, 8, ranks, each, 1) for ranks, each in ((1, 8), (2, 4), (4, 2), (8, 1))),
        (64, 8, 16, 1, 2),
        *((28, 4, ranks, 4 // ranks, 1) for ranks in (1, 2, 4)),
        (64, 1, 8, 1, 8),
    ],
)
def test_degrees_that_are_possible(heads: int, kv_heads: int, ranks: int, each: int, copies: int) -> None:
    shape = make(3, heads, kv_heads, 128)
    assert isinstance(shape.attention, GroupedHeads)
    assert is_possible_degree(shape.attention, ranks)
    assert kv_heads_per_rank(shape.attention, ranks) == each
    assert copies_of_kv(shape.attention, ranks) == copies
    assert rank_token_bytes(shape, 2, ranks) == 3 * 2 * each * 128 * 2


@pytest.mark.parametrize("ranks", [7, 8])
def test_degrees_that_are_not(ranks: int) -> None:
    assert not is_possible_degree(GroupedHeads(heads=28, kv_heads=4, head_dim=128), ranks)


def test_every_rank_keeps_a_latent_vector_whole() -> None:
    assert possible_degrees(DEEPSEEK_V3) == [1, 2, 4, 8, 16, 32, 64]
    assert rank_token_bytes(DEEPSEEK_V3, 2, 8) == token_bytes(DEEPSEEK_V3, 2)


@pytest.mark.parametrize(
    ("shape", "tokens", "rate", "milliseconds"),
    [
        (TINY_LLAMA, 1024, 25, 7.4),
        (TINY_LLAMA, 1024, 400, 0.46),
        (LLAMA_8B, 2000, 25, 83.9),
        (LLAMA_8B, 2000, 100, 21.0),
        (LLAMA_8B, 4096, 400, 10.7),
        (LLAMA_7B, 1000, 25, 168),
        (OPT_66B, 512, 100, 96.6),
        (LLAMA_70B, 4096, 100, 107),
        (LLAMA_70B_MHA, 4096, 25, 3436),
        (LLAMA_70B, 32_768, 400, 215),
        (LLAMA_70B, 131_072, 100, 3440),
        (LLAMA_70B, 131_072, 3200, 107),
        (LLAMA_8B, 2000, 512, 4.1),
    ],
    ids=str,
)
def test_times_on_the_wire(shape: ModelShape, tokens: int, rate: int, milliseconds: float) -> None:
    moved = tokens * token_bytes(shape, 2)
    assert transfer_s(moved, rate) * 1e3 == pytest.approx(milliseconds, rel=0.012)


@pytest.mark.parametrize(
    ("shape", "prefill_tokens_per_s", "needed"),
    [
        (LLAMA_8B, 10_000, 10.5),
        (LLAMA_8B, 40_000, 41.9),
        (LLAMA_70B, 5_000, 13.1),
        (LLAMA_70B, 20_000, 52.4),
        (LLAMA_70B_MHA, 5_000, 104.9),
        (DEEPSEEK_V3, 50_000, 28.1),
        (OPT_66B, 5_120, 96.6),
    ],
    ids=str,
)
def test_rate_that_hides_a_transfer(shape: ModelShape, prefill_tokens_per_s: float, needed: float) -> None:
    assert round(hiding_gigabits_per_s(token_bytes(shape, 2), prefill_tokens_per_s), 1) == needed


def test_floors_of_a_decode_step() -> None:
    bandwidth = GPUS["H100-80"].bandwidth_bytes_per_s
    assert step_floor_s(70e9 * 2 / 8, 0, bandwidth) * 1e3 == pytest.approx(5.2, abs=0.05)
    assert step_floor_s(7e9 * 2, 0, bandwidth) * 1e3 == pytest.approx(4.2, abs=0.05)
    assert step_floor_s(7e9 / 2, 0, bandwidth) * 1e3 == pytest.approx(1.04, abs=0.01)


def test_a_70b_model_on_eight_gpus() -> None:
    serving = Serving(
        shape=LLAMA_70B,
        weight_bytes=141 * 10**9,
        number_bytes=2,
        block_size_tokens=BLOCK,
        ranks=8,
        workspace_share=0.1,
    )
    found = fit(serving, GPUS["H100-80"], [131_072])
    assert found.kv_bytes * 8 == 435 * 10**9
    assert found.blocks * BLOCK == pytest.approx(1.33e6, rel=0.003)
    assert found.contexts[0].largest_batch == 10
    assert not found.misfits


def test_what_does_not_fit_is_named_with_its_cure() -> None:
    serving = Serving(
        shape=LLAMA_70B,
        weight_bytes=141 * 10**9,
        number_bytes=2,
        block_size_tokens=BLOCK,
        ranks=1,
        workspace_share=0.1,
    )
    (misfit,) = fit(serving, GPUS["H100-80"], [4096]).misfits
    assert "141.0 GB" in misfit
    assert "72.0 GB" in misfit
    assert "--tensor-parallel 2 or --gpu B200-180" in misfit
    assert fit(serving, GPUS["B200-180"], [4096]).misfits == ()
    (too_long,) = fit(serving, GPUS["B200-180"], [131_072]).misfits
    assert "8192 blocks" in too_long
    assert "--tensor-parallel 2" in too_long


def test_blocks_of_a_window() -> None:
    """⌈(W-1)/B⌉+1 blocks are held at most, and no more are ever moved."""
    assert held_blocks(MISTRAL, 1000, BLOCK) == 63
    assert held_blocks(MISTRAL, 4096, BLOCK) == 256
    assert held_blocks(MISTRAL, 32_768, BLOCK) == held_blocks(MISTRAL, 1 << 20, BLOCK) == 257
    assert moved_blocks(MISTRAL, 1000, BLOCK) == 63
    assert moved_blocks(MISTRAL, 32_768, BLOCK) == 256
    assert max(moved_blocks(MISTRAL, tokens, BLOCK) for tokens in range(8000, 8100)) == 257
    mixed = ModelShape(
        name="mixed",
        parameters=0,
        attention=MISTRAL.attention,
        windows=(4096, 0) * 16,
        max_context_tokens=1 << 17,
    )
    assert held_blocks(mixed, 32_768, BLOCK) == moved_blocks(mixed, 32_768, BLOCK) == 2048
    assert seen_bytes(mixed, 32_768, 2) == 65_536 * (4096 + 32_768)
