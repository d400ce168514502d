"""What happens to rows between the matrix products, compiled: norms, rotation and KV write, gates, residual sums.

Each function takes rows until none is left, beside other threads. Everything is computed in float32 and rounded to the
weights' type wherever the modules of transformers round.
"""

import math
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from inference_engine.attention_kernel import Floats, Ints, Numbers
from inference_engine.code_builder import LANES
from inference_engine.number_formats import narrow, rounded, wide
from inference_engine.product_kernel import arrange
from inference_engine.thread_team import Seat, take
from inference_engine.vector_rows import address_of, raise_e

Longs = npt.NDArray[np.int64]

_SUMS = {"reassoc", "contract"}  # sums may be taken in lanes


class StackedWeights(NamedTuple):
    """A model's weights, those of all layers in one array. A bias or a norm that is not there has no layers."""

    embedding: Numbers  # [vocabulary, hidden]
    input_norms: Numbers  # [layers, hidden]
    query_key_value: Numbers  # [layers, (heads + 2 * kv_heads) * head_dim, hidden]
    query_key_value_bias: Numbers
    query_norms: Numbers  # [layers, head_dim]
    key_norms: Numbers
    attention_output: Numbers  # [layers, hidden, heads * head_dim]
    attention_output_bias: Numbers
    inner_norms: Numbers  # [layers, hidden]
    gate_up: Numbers  # [layers, 2 * inner, hidden]
    gate_up_bias: Numbers
    down: Numbers  # [layers, hidden, inner]
    down_bias: Numbers
    final_norm: Numbers  # [hidden]
    head: Numbers  # [vocabulary, hidden]
    windows: Ints  # [layers]
    epsilon: np.float32


class StepRows(NamedTuple):
    """What a step's rows are."""

    token_ids: Longs  # [rows]
    slot_blocks: Longs  # [rows]
    slot_offsets: Longs  # [rows]
    cosine: Floats  # [rows, head_dim]
    sine: Floats  # [rows, head_dim]
    read_rows: Longs  # [reads]: rows whose logits are wanted
    tiles: Ints  # of the rows; see `attend_tiles`
    read_tiles: Ints  # of those that are read, and perhaps of others
    tables: Ints


class Room(NamedTuple):
    """Where the rows are between the products. Widths of what is multiplied are rounded up to whole groups."""

    hidden: Floats  # [rows, hidden]
    kept: Floats  # [rows, hidden]: of the rows that are read, after the last layer's attention
    normed: Floats  # [rows, hidden, padded]
    sums: Floats  # [rows, most outputs]
    queries: Numbers  # [rows, heads, head_dim]
    mixed: Numbers  # [rows, heads, head_dim]
    attended: Floats  # [rows, heads * head_dim, padded]
    inner: Floats  # [rows, inner, padded]
    lines: Floats  # [threads, widest]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_SUMS)
def _norm(source: Floats, weight: Numbers, epsilon: np.float32, target: Floats) -> None:
    """Root mean square normalisation, rounded before it is weighted; ``target`` may be ``source``."""
    length = weight.shape[0]
    squares = np.float32(0.0)
    for index in range(length):
        squares += source[index] * source[index]
    spread = np.float32(1.0) / np.float32(math.sqrt(squares / np.float32(length) + epsilon))
    for index in range(length):
        target[index] = rounded(wide(weight[index]) * rounded(source[index] * spread, weight), weight)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def embed_rows(
    seat: Seat, phase: int, weights: StackedWeights, step: StepRows, room: Room, folded: bool
) -> None:  # compiled
    """Look the tokens up and normalise them for the first layer."""
    rows, width, line = step.token_ids.shape[0], weights.embedding.shape[1], room.lines[seat.part]
    row = take(seat, phase)
    while row < rows:
        token = step.token_ids[row]
        for index in range(width):
            room.hidden[row, index] = wide(weights.embedding[token, index])
        _norm(room.hidden[row], weights.input_norms[0], weights.epsilon, line)
        arrange(line, width, weights.head, folded, room.normed[row])
        row = take(seat, phase)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _rotate(line: Floats, cosine: Floats, sine: Floats, like: Numbers) -> None:
    half = cosine.shape[0] // 2
    for index in range(half):
        first, second = line[index], line[index + half]
        line[index] = rounded(rounded(first * cosine[index], like) + rounded(-second * sine[index], like), like)
        line[index + half] = rounded(
            rounded(second * cosine[index + half], like) + rounded(first * sine[index + half], like), like
        )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def turn_rows(  # noqa: PLR0913, PLR0917  # compiled
    seat: Seat, phase: int, weights: StackedWeights, layer: int, step: StepRows, room: Room, pool: Numbers
) -> None:  # compiled
    """Take queries, keys and values out of the sums, rotate the first two, and write the others into the pool."""
    rows, line = step.token_ids.shape[0], room.lines[seat.part]
    kv_heads, head_dim, heads = pool.shape[3], pool.shape[5], room.queries.shape[1]
    biased, normed = weights.query_key_value_bias.shape[0] > 0, weights.query_norms.shape[0] > 0
    row = take(seat, phase)
    while row < rows:
        block, offset = step.slot_blocks[row], step.slot_offsets[row]
        for head in range(heads + 2 * kv_heads):
            start = head * head_dim
            for index in range(head_dim):
                number = room.sums[row, start + index]
                if biased:
                    number += wide(weights.query_key_value_bias[layer, start + index])
                line[index] = rounded(number, pool)
            if head < heads + kv_heads:
                if normed:
                    norm = weights.query_norms[layer] if head < heads else weights.key_norms[layer]
                    _norm(line, norm, weights.epsilon, line)
                _rotate(line, step.cosine[row], step.sine[row], pool)
            if head < heads:
                for index in range(head_dim):
                    room.queries[row, head, index] = narrow(line[index], pool)
            else:
                kind, own = (head - heads) // kv_heads, (head - heads) % kv_heads
                for index in range(head_dim):
                    pool[block, layer, kind, own, offset, index] = narrow(line[index], pool)
        row = take(seat, phase)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def gather_rows(  # noqa: PLR0913, PLR0917  # compiled
    seat: Seat, phase: int, weights: StackedWeights, last: bool, step: StepRows, room: Room, folded: bool
) -> None:  # compiled
    """Arrange what attention gave for the next product; after the last layer only the rows that are read."""
    rows = step.read_rows.shape[0] if last else step.token_ids.shape[0]
    heads, head_dim, line = room.mixed.shape[1], room.mixed.shape[2], room.lines[seat.part]
    row = take(seat, phase)
    while row < rows:
        source = row
        if last:
            source = step.read_rows[row]
            for index in range(room.kept.shape[1]):
                room.kept[row, index] = room.hidden[source, index]
        mixed = room.mixed[source].reshape(heads * head_dim)
        for index in range(heads * head_dim):
            line[index] = wide(mixed[index])
        arrange(line, heads * head_dim, weights.head, folded, room.attended[row])
        row = take(seat, phase)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_rows(  # noqa: PLR0913, PLR0917  # compiled
    seat: Seat,
    phase: int,
    hidden: Floats,
    rows: int,
    bias: Numbers,
    norm: Numbers,
    weights: StackedWeights,
    room: Room,
    folded: bool,
) -> None:  # compiled
    """Add the sums, and ``bias`` where it has a length, to the residual stream, and normalise for the next product."""
    width, line = hidden.shape[1], room.lines[seat.part]
    row = take(seat, phase)
    while row < rows:
        own, sums = hidden[row], room.sums[row]
        if bias.shape[0] > 0:
            for index in range(width):
                own[index] = rounded(own[index] + rounded(sums[index] + wide(bias[index]), norm), norm)
        else:
            for index in range(width):
                own[index] = rounded(own[index] + rounded(sums[index], norm), norm)
        _norm(own, norm, weights.epsilon, line)
        arrange(line, width, norm, folded, room.normed[row])
        row = take(seat, phase)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def gate_rows(  # noqa: PLR0913, PLR0917  # compiled
    seat: Seat, phase: int, rows: int, bias: Numbers, like: Numbers, inner: int, room: Room, folded: bool
) -> None:  # compiled
    """Compute silu(gate) · up of the sums, for the last product."""
    line = room.lines[seat.part]
    row = take(seat, phase)
    while row < rows:
        sums = room.sums[row]
        for index in range(2 * inner):
            number = sums[index]
            if bias.shape[0] > 0:
                number += wide(bias[index])
            sums[index] = rounded(number, like)
        for index in range(inner):
            line[index] = -sums[index]
        whole = inner // LANES
        raise_e(address_of(line), whole)
        for index in range(whole * LANES, inner):
            line[index] = np.float32(math.exp(line[index]))
        for index in range(inner):
            silu = rounded(sums[index] / (np.float32(1.0) + line[index]), like)
            line[index] = rounded(silu * sums[inner + index], like)
        arrange(line, inner, like, folded, room.inner[row])
        row = take(seat, phase)
