"""A step plan as arrays, built once a step: nothing in the layers loops over sequences in Python.

The tokens of all slices lie one after another; *row* is a token's place in that order.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from inference_engine.step import StepPlan

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The arrays of one step: ``rows`` tokens of ``sequences`` slices."""

    token_ids: torch.Tensor  # [rows] int64
    positions: torch.Tensor  # [rows] int64
    slot_blocks: torch.Tensor  # [rows] int64: the block that takes the row's KV
    slot_offsets: torch.Tensor  # [rows] int64: and the token's place in it
    draw_rows: torch.Tensor  # [logits] int64: rows whose logits are read, for draws or for logprobs
    query_starts: Int32Array  # [sequences + 1]: first row of each slice
    context_lengths: Int32Array  # [sequences]: tokens of the sequence once the step is done
    block_table: Int32Array  # [sequences, most blocks], padded with 0


def build_batch(plan: StepPlan, block_size_tokens: int, device: torch.device) -> Batch:
    """Lay the plan out in arrays. Block tables are cut to the blocks that the step reads."""
    slices = plan.slices
    lengths = np.array([len(piece.token_ids) for piece in slices], dtype=np.int64)
    starts = np.array([piece.start for piece in slices], dtype=np.int64)
    contexts = starts + lengths
    blocks = -(-contexts // block_size_tokens)
    assert all(len(piece.block_table) >= count for piece, count in zip(slices, blocks, strict=True)), "table too short"
    query_starts = np.concatenate(([0], np.cumsum(lengths)))
    rows = int(query_starts[-1])

    block_table = np.zeros((len(slices), int(blocks.max())), dtype=np.int32)
    for index, piece in enumerate(slices):
        block_table[index, : blocks[index]] = piece.block_table[: blocks[index]]

    sequence_of_row = np.repeat(np.arange(len(slices)), lengths)
    positions = np.arange(rows) + (starts - query_starts[:-1])[sequence_of_row]
    slot_blocks = block_table[sequence_of_row, positions // block_size_tokens].astype(np.int64)
    token_ids = np.fromiter(chain.from_iterable(piece.token_ids for piece in slices), dtype=np.int64, count=rows)
    read_counts = lengths - np.array([piece.first_read for piece in slices], dtype=np.int64)
    read_ends = np.cumsum(read_counts)
    draw_rows = np.arange(read_ends[-1]) + np.repeat(query_starts[1:] - read_ends, read_counts)

    def tensor(values: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    return Batch(
        token_ids=tensor(token_ids),
        positions=tensor(positions),
        slot_blocks=tensor(slot_blocks),
        slot_offsets=tensor(positions % block_size_tokens),
        draw_rows=tensor(draw_rows),
        query_starts=query_starts.astype(np.int32),
        context_lengths=contexts.astype(np.int32),
        block_table=block_table,
    )
