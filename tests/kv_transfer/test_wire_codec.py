"""What packing a block costs in precision, and that damage is noticed."""

import numpy as np
import pytest
import torch

from cluster_core.layout import KvLayout
from kv_transfer.wire_codec import WireCodec

LAYERS, HEADS, TOKENS, DIM = 3, 2, 16, 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OWN_ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
DIGEST = bytes(range(16))


def layout(dtype: str) -> KvLayout:
    return KvLayout(layers=LAYERS, kv_heads=HEADS, head_dim=DIM, block_size_tokens=TOKENS, dtype=dtype)


def random_blocks(count: int, dtype: str, seed: int) -> torch.Tensor:
    """Numbers of very different sizes from head to head, and a few outliers in each."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, LAYERS, 2, HEADS, TOKENS, DIM)
    sizes = 10.0 ** torch.randint(-4, 4, (count, LAYERS, 2, HEADS, 1, 1), generator=generator)
    values = torch.randn(shape, generator=generator) * sizes
    outliers = torch.rand(shape, generator=generator) < 0.002
    return torch.where(outliers, values * 50, values).to(DTYPES[dtype])


def rows_of(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).view(torch.uint8)


def through(codec: WireCodec, values: torch.Tensor) -> torch.Tensor:
    """Return ``values`` packed and unpacked."""
    count = len(values)
    packed = torch.empty((count, codec.packed_bytes), dtype=torch.uint8)
    codec.pack(rows_of(values), [DIGEST] * count, packed)
    back = torch.empty_like(values)
    for row, block in zip(packed, rows_of(back), strict=True):
        assert codec.unpack(row, block) == DIGEST
    return back


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_bounded_for_each_head(name: str, dtype: str, seed: int) -> None:
    values = random_blocks(4, dtype, seed)
    back = through(WireCodec(layout(dtype), name), values).double()
    exact = values.double()
    largest = exact.abs().amax(dim=(4, 5), keepdim=True)
    bound = largest / 254 if name == "int8" else torch.maximum(exact.abs() / 16, largest / 458_752)
    bound = bound * (1 + 1e-5) + (exact.abs() + bound) * OWN_ROUNDING[dtype]
    assert ((back - exact).abs() <= bound).all()
    assert not torch.equal(back, exact)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_zeros_stay_zeros_and_the_largest_stays(name: str) -> None:
    values = torch.zeros((1, LAYERS, 2, HEADS, TOKENS, DIM))
    values[0, 0, 0, 0, 0, 0] = 3.0e38
    values[0, 1, 1, 1, 2, 3] = -1.0e-30
    assert torch.allclose(through(WireCodec(layout("float32"), name), values), values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_packed_block_is_about_as_large_as_its_numbers_are_many(name: str) -> None:
    codec = WireCodec(layout("bfloat16"), name)
    assert codec.packed_bytes == codec.block_bytes // 2 + LAYERS * 2 * HEADS * 4 + 32


def test_arrays_serve_as_tensors_do() -> None:
    codec, values = WireCodec(layout("float32"), "int8"), random_blocks(2, "float32", 1)
    packed, block = np.zeros((2, codec.packed_bytes), np.uint8), np.zeros(codec.block_bytes, np.uint8)
    codec.pack(rows_of(values).numpy(), [DIGEST, DIGEST], packed)
    assert codec.unpack(packed[1], block) == DIGEST
    assert np.array_equal(block.view(np.float32), through(codec, values)[1].flatten().numpy())


@pytest.mark.parametrize("place", [0, 100, -40, -20, -1])
def test_damage_is_noticed_and_nothing_is_written(place: int) -> None:
    codec, values = WireCodec(layout("float32"), "int8"), random_blocks(1, "float32", 2)
    packed = torch.empty((1, codec.packed_bytes), dtype=torch.uint8)
    codec.pack(rows_of(values), [DIGEST], packed)
    packed[0, place] ^= 4
    block = torch.full((codec.block_bytes,), 9, dtype=torch.uint8)
    assert codec.unpack(packed[0], block) is None
    assert (block == 9).all()


def test_measuring_leaves_the_blocks_alone() -> None:
    codec, values = WireCodec(layout("float32"), "int8"), random_blocks(1, "float32", 3)
    before = values.clone()
    pack_s, unpack_s = codec.measure(rows_of(values))
    assert pack_s > 0
    assert unpack_s > 0
    assert torch.equal(values, before)
