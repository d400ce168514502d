"""Blocks made smaller for a slow link: 8 bits a number, one scale for each layer, keys or values, and head.

A packed block is ``[scales | numbers | digest of the exact block | digest of all before]``. The last digest guards what
travels; the one before it is of the bytes that were packed, seeded by place and hash, and is compared with what was
sealed. So a block that was harmed before it was packed, or that is in another's place, is caught although the bytes
that travel are not those that were sealed.

What comes back differs from what was packed. With ``m`` the largest magnitude that shares a number's scale:

* ``int8``: by at most m / 254;
* ``fp8`` (E4M3): by at most 1 / 16 of the number itself, or m / 458,752 where that is more (7 bits below m / 448);

and by the rounding of the block's own type, once more, where that is bfloat16. It is not for the hash model, whose
blocks are no numbers.
"""

import time
from typing import Any

import torch
import xxhash

from cluster_core.layout import DTYPE_BYTES, KvLayout
from kv_transfer.digest import DIGEST_BYTES

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_LARGEST = {"int8": 127.0, "fp8": 448.0}
_SCALE_BYTES = 4
_MEASURED_BYTES = 1 << 20
_MEASURED_BLOCKS = 64
"""Small blocks are as dear by the piece: more of them tell no more, and take time."""


class WireCodec:
    """Packs and unpacks blocks of ``layout`` in the format ``name``, on whichever device they lie."""

    def __init__(self, layout: KvLayout, name: str) -> None:
        self.name = name
        self.block_bytes = layout.block_bytes
        self._dtype = _DTYPES[layout.dtype]
        self._groups = layout.layers * 2 * layout.kv_heads
        numbers = layout.block_bytes // DTYPE_BYTES[layout.dtype]
        self._scales_end = self._groups * _SCALE_BYTES
        self._numbers_end = self._scales_end + numbers
        self.packed_bytes = self._numbers_end + 2 * DIGEST_BYTES
        """Bytes of a packed block."""

    def copy(self, rows: Any, indices: list[int], copies: Any) -> None:
        """Copy the rows ``indices`` into ``copies``, where they are when this returns."""
        for place, index in enumerate(indices):
            copies[place] = rows[index]
        if as_tensor(copies).is_cuda:
            torch.cuda.current_stream(copies.device).synchronize()  # whoever digests them has a stream of its own

    def pack(self, blocks: Any, digests: list[bytes], packed: Any) -> None:
        """Pack ``blocks`` into ``packed``, matrices of bytes with a row for each; ``digests`` are the exact blocks'."""
        source, target = as_tensor(blocks), as_tensor(packed)
        values = source.view(self._dtype).view(len(source), self._groups, -1).float()  # [block, group, number]
        scales = values.abs().amax(dim=2) / _LARGEST[self.name]
        scales = torch.where(scales > 0, scales, torch.ones_like(scales))
        numbers = values / scales.unsqueeze(2)
        if self.name == "int8":
            numbers = numbers.round_()
        numbers = numbers.clamp_(-_LARGEST[self.name], _LARGEST[self.name]).to(_TYPES[self.name])
        target[:, : self._scales_end] = scales.view(torch.uint8)
        target[:, self._scales_end : self._numbers_end] = numbers.view(torch.uint8).flatten(1)
        words = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(len(source), DIGEST_BYTES)
        target[:, self._numbers_end : -DIGEST_BYTES] = words.to(target.device)
        guards = bytearray(b"".join(self._guard(row) for row in target))
        target[:, -DIGEST_BYTES:] = (
            torch.frombuffer(guards, dtype=torch.uint8).view(len(source), DIGEST_BYTES).to(target.device)
        )
        if target.is_cuda:
            torch.cuda.current_stream(target.device).synchronize()  # whoever sends it knows no streams

    def unpack(self, packed: Any, block: Any) -> bytes | None:
        """Write what a row of packed bytes holds into the bytes of ``block``.

        Returns the digest of the exact block that was packed; None, with ``block`` as it was, for damaged bytes.
        """
        source, target = as_tensor(packed), as_tensor(block)
        if self._guard(source) != _bytes_of(source[-DIGEST_BYTES:]):
            return None
        scales = source[: self._scales_end].clone().view(torch.float32)
        numbers = source[self._scales_end : self._numbers_end].view(_TYPES[self.name]).view(self._groups, -1)
        values = numbers.float() * scales.unsqueeze(1)
        target.copy_(values.to(self._dtype).flatten().view(torch.uint8))
        return _bytes_of(source[self._numbers_end : -DIGEST_BYTES])

    def _guard(self, row: torch.Tensor) -> bytes:
        content: Any = row[:-DIGEST_BYTES].cpu().numpy()
        digest: bytes = xxhash.xxh3_128_digest(content)
        return digest

    def measure(self, rows: Any) -> tuple[float, float]:
        """Return the seconds that packing and unpacking a byte of blocks takes where ``rows``, untouched, lie."""
        count = min(max(1, _MEASURED_BYTES // self.block_bytes), _MEASURED_BLOCKS)
        device = as_tensor(rows).device
        blocks = torch.ones((count, self.block_bytes // self._dtype.itemsize), dtype=self._dtype, device=device)
        blocks = blocks.view(torch.uint8)
        packed = torch.empty((count, self.packed_bytes), dtype=torch.uint8, device=device)
        times: list[tuple[float, float]] = []
        for _ in range(3):
            began = time.perf_counter()
            self.pack(blocks, [bytes(DIGEST_BYTES)] * count, packed)
            between = time.perf_counter()
            for row, block in zip(packed, blocks, strict=True):
                self.unpack(row, block)
            times.append((between - began, time.perf_counter() - between))
        size = count * self.block_bytes
        return min(pack_s for pack_s, _ in times) / size, min(unpack_s for _, unpack_s in times) / size


def as_tensor(memory: Any) -> torch.Tensor:
    """Return the bytes of an array or a tensor as a tensor, in place."""
    return memory if isinstance(memory, torch.Tensor) else torch.from_numpy(memory)


def _bytes_of(piece: torch.Tensor) -> bytes:
    return bytes(piece.cpu().numpy())
