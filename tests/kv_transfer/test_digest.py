"""What the digest tells apart, and what the settings refuse."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster_core.blocks import BlockReference
from cluster_core.errors import SettingsError
from cluster_core.identity import BlockHash
from cluster_core.settings_reader import read_section
from kv_transfer.digest import DIGEST_BYTES, BlockDigests, DigestMemo, block_digest
from kv_transfer.settings import TransferSettings
from tests.kv_transfer.fake_pool import FakePool, hashes_of

CONTENT = np.random.default_rng(3).integers(0, 256, 10_000, dtype=np.uint8)
HASH = BlockHash(b"h" * 16)


class OnDevice:
    """A CUDA tensor as far as the digest can tell."""

    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012  # the protocol's name for an attribute

    def __init__(self, content: NDArray[np.uint8]) -> None:
        self._content = content

    def cpu(self) -> "OnDevice":
        return self

    def numpy(self) -> NDArray[np.uint8]:
        return self._content


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 79_999))
def test_every_flipped_bit_changes_the_digest(bit: int) -> None:
    changed = CONTENT.copy()
    changed[bit // 8] ^= 1 << bit % 8
    assert block_digest(changed, 0, HASH) != block_digest(CONTENT, 0, HASH)


def test_position_hash_and_length_are_part_of_it() -> None:
    digests = {
        block_digest(CONTENT, 0, HASH),
        block_digest(CONTENT, 1, HASH),
        block_digest(CONTENT, 0, BlockHash(b"g" * 16)),
        block_digest(CONTENT, 0, None),
        block_digest(CONTENT[:-1], 0, HASH),
    }
    assert len(digests) == 5
    assert {len(digest) for digest in digests} == {DIGEST_BYTES}


def test_it_is_the_bytes_that_count_not_where_they_lie() -> None:
    expected = block_digest(CONTENT, 3, HASH)
    assert block_digest(memoryview(CONTENT.tobytes()), 3, HASH) == expected
    assert block_digest(CONTENT.view(np.float32), 3, HASH) == expected
    assert block_digest(OnDevice(CONTENT), 3, HASH) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transport", "pigeon"),
        ("lease_s", 0.0),
        ("grace_s", float("nan")),
        ("pull_timeout_s", -1),
        ("blocks_in_flight", -1),
    ],
)
def test_settings_that_cannot_be_right_name_their_key(key: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"transfer\.{key}: "):
        read_section({"transfer": {key: value}}, "transfer", TransferSettings)


def test_a_full_block_is_read_once_in_its_generation_and_the_last_one_always() -> None:
    pool = FakePool(2)
    memo = DigestMemo(BlockDigests(pool))
    full = BlockReference(position=0, index=1, generation=5, hash=hashes_of(16)[0], digest=b"", tokens=16)
    last = BlockReference(position=1, index=0, generation=5, hash=None, digest=b"", tokens=3)
    again = replace(full, generation=6)
    before, part = memo.of([full, last])
    assert [before, part] == [block_digest(pool.buffer(1), 0, full.hash), block_digest(pool.buffer(0), 1, None)]
    pool.bytes[:, 7] ^= 1
    assert memo.of([last, full, full]) == [block_digest(pool.buffer(0), 1, None), before, before]
    assert memo.of([last]) != [part]
    assert memo.of([again]) == [block_digest(pool.buffer(1), 0, full.hash)] != [before]
