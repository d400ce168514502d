"""Digests of blocks in CUDA memory, computed where they lie: `kv_transfer.digest_triton_kernel` with its surroundings.

Life of a question. Which rows, and the seed of each, go to the device in one copy; two kernels follow, and the digests
come back in one copy, for which the caller waits. All of it happens on a stream of its own and of high priority: what
the engine is computing meanwhile is not waited for, since a block that is to be digested has been written, as its step
has ended or its bytes have landed. Whoever writes a block otherwise waits until the write is done.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from kv_transfer.digest_triton_kernel import LANES, STRIPES, chain_steps, sum_stripes

LEAST_BYTES = 241
"""Shorter inputs have other algorithms."""
WORD_BYTES = 8
_WORD = 2**64
_SCRATCH_BYTES = 16 << 20
"""Room for sums, 1/16 of the blocks' bytes; where it is too small for a question, several launches use it in turn."""
_MOST_BLOCKS = 4096
"""Asked for in one question."""
_COLUMNS, _TURNS = 128, 4
"""A program sums up 4 turns of 16 steps: 64 KiB."""
_CHAINED_BLOCKS, _CHAINED_STEPS = 4, 16
_DIGEST_BYTES = 16

# The specification's default secret and primes.
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_PRIMES_32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_PRIMES_64 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
_FIRST_VALUES = (_PRIMES_32[2], *_PRIMES_64[:4], _PRIMES_32[1], _PRIMES_64[4], _PRIMES_32[0])


def suits(rows: torch.Tensor) -> bool:
    """Whether the kernels can digest the rows of this matrix of bytes: they read words of 8 bytes."""
    sizes = (rows.shape[1], rows.stride(0), rows.data_ptr())
    return rows.shape[1] >= LEAST_BYTES and not any(size % WORD_BYTES for size in sizes)


def _words_of(row_bytes: int) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """Return the table that the kernels read: see `digest_triton_kernel`."""
    secret = np.frombuffer(_SECRET, "<u8")
    merges = (row_bytes * _PRIMES_64[0] % _WORD, _WORD - 1 - row_bytes * _PRIMES_64[1] % _WORD)
    return np.concatenate((secret, np.array(_FIRST_VALUES, np.uint64), np.array(merges, np.uint64)))


class RowDigests:
    """Digests of the rows of one matrix of bytes. Belongs to one thread."""

    def __init__(self, rows: torch.Tensor) -> None:
        """``rows`` must be such that they `suit <suits>`. Reserves up to 16 MiB on their device, and compiles."""
        device, (_, row_bytes) = rows.device, rows.shape
        steps = (row_bytes - 1) // (STRIPES * LANES * WORD_BYTES) + 1
        self._rows = rows.view(torch.uint64)
        self._groups = -(-steps // (_COLUMNS // LANES * _TURNS))
        self._at_once = max(1, min(_MOST_BLOCKS, _SCRATCH_BYTES // (steps * LANES * WORD_BYTES)))
        pinned = rows.is_cuda
        self._stream: Any = None
        if rows.is_cuda:
            torch.cuda.set_device(device)  # of this thread, which also runs UCX: it copies by its thread's device
            self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # torch's own
        with self._on_stream():
            self._words = torch.from_numpy(_words_of(row_bytes)).to(device)
            self._sums = torch.empty((self._at_once, steps, LANES), dtype=torch.uint64, device=device)
            self._asked = torch.empty((_MOST_BLOCKS, 2), dtype=torch.uint64, device=device)
            self._found = torch.empty((_MOST_BLOCKS, 2), dtype=torch.uint64, device=device)
        self._question = torch.empty((_MOST_BLOCKS, 2), dtype=torch.uint64, pin_memory=pinned)
        self._answer = torch.empty((_MOST_BLOCKS, 2), dtype=torch.uint64, pin_memory=pinned)
        self.of([0], [0])

    def of(self, indices: Sequence[int], seeds: Sequence[int]) -> list[bytes]:
        """Return `xxhash.xxh3_128_digest` of each of the rows ``indices``, with its seed; waits for the device."""
        digests: list[bytes] = []
        for first in range(0, len(indices), _MOST_BLOCKS):
            some = slice(first, first + _MOST_BLOCKS)
            digests += self._answered(indices[some], seeds[some])
        return digests

    def _answered(self, indices: Sequence[int], seeds: Sequence[int]) -> list[bytes]:
        count = len(indices)
        question, answer = self._question[:count], self._answer[:count]
        question.numpy()[:, 0] = indices
        question.numpy()[:, 1] = np.array(seeds, np.uint64)
        with self._on_stream():
            self._asked[:count].copy_(question, non_blocking=True)
            for first in range(0, count, self._at_once):
                self._launch(slice(first, min(first + self._at_once, count)))
            answer.copy_(self._found[:count], non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        joined = answer.numpy().astype(">u8").tobytes()  # high word first, its highest byte first: xxhash's own order
        return [joined[start : start + _DIGEST_BYTES] for start in range(0, len(joined), _DIGEST_BYTES)]

    def _launch(self, part: slice) -> None:
        asked, found, count = self._asked[part], self._found[part], part.stop - part.start
        stride, row_words = self._rows.stride(0), self._rows.shape[1]
        sum_stripes[count, self._groups](
            self._rows, asked, self._words, self._sums, stride, row_words, COLUMNS=_COLUMNS, TURNS=_TURNS
        )
        chain_steps[(-(-count // _CHAINED_BLOCKS),)](
            self._sums,
            asked,
            self._words,
            found,
            count,
            row_words,
            BLOCKS=_CHAINED_BLOCKS,
            STEPS=_CHAINED_STEPS,
            num_warps=1,
        )

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
