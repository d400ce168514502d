"""The memory of all blocks: one tensor ``[block, layer, k/v, kv_head, token, head_dim]``.

A block is one contiguous region, so it is handed over as one message; for one layer, keys or values, and one head, the
tokens of a block are one contiguous matrix, which is what the kernels read.
"""

from typing import Any

import torch

from cluster_core.layout import KvLayout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class KvPool:
    """Blocks by index. Who may read or write which block is decided elsewhere."""

    def __init__(self, layout: KvLayout, total_blocks: int, device: torch.device, spare_blocks: int = 0) -> None:
        """``spare_blocks`` come after the others and are nobody's: see `inference_engine.cuda_graphs`."""
        block_shape = (layout.layers, 2, layout.kv_heads, layout.block_size_tokens, layout.head_dim)
        shape = (total_blocks + spare_blocks, *block_shape)
        self.storage = torch.zeros(shape, dtype=DTYPES[layout.dtype], device=device)
        self.total_blocks = total_blocks
        self.block_bytes = layout.block_bytes
        self._bytes = self.storage.flatten(1).view(torch.uint8)  # [all blocks, block_bytes]
        self._host_bytes = self._bytes.numpy() if device.type == "cpu" else None
        self._stream: Any = None
        """On CUDA, of what must not wait for the step that is being computed."""
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # torch's own

    @property
    def rows(self) -> Any:
        """All blocks as a matrix of bytes: on the CPU a numpy array, on CUDA a tensor."""
        return self._bytes if self._host_bytes is None else self._host_bytes

    def buffer(self, index: int) -> Any:
        """Return the bytes of a block, contiguous, to be read or written in place.

        On the CPU a numpy array of uint8; on CUDA a uint8 tensor with ``__cuda_array_interface__``.
        """
        return self.rows[index]

    def copy_block(self, source: int, target: int) -> None:
        """Make block ``target`` hold what block ``source`` holds."""
        self._bytes[target].copy_(self._bytes[source])

    def clear_unused(self, index: int, tokens: int) -> None:
        """Zero the slots from ``tokens`` on, so that a part-filled block's bytes depend on its tokens alone.

        On CUDA it is done, too, when this returns: the block may be sent at once, by whoever knows no streams.
        """
        if self._stream is None:
            self.storage[index, :, :, :, tokens:] = 0
            return
        with torch.cuda.stream(self._stream):
            self.storage[index, :, :, :, tokens:] = 0
        self._stream.synchronize()
