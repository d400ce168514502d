"""A whole step, from token ids to logits, as one compiled function that all threads of a team run side by side.

No Python runs between the layers: a step of few rows takes less time than Python would take for its operations. What
all threads need before they go on is a *phase*; they `meet` at its end.
"""

import numba

from inference_engine.attention_kernel import Floats, Numbers, Works, attend_tiles
from inference_engine.number_formats import rounded
from inference_engine.product_kernel import FOLDED, multiply
from inference_engine.row_kernels import (
    Room,
    StackedWeights,
    StepRows,
    add_rows,
    embed_rows,
    gate_rows,
    gather_rows,
    turn_rows,
)
from inference_engine.thread_team import Seat, meet, take


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _layer_bias(biases: Numbers, layer: int) -> Numbers:
    return biases[layer] if biases.shape[0] > 0 else biases.reshape(-1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def compute_step(  # noqa: PLR0913, PLR0915, PLR0917  # compiled; a model from top to bottom
    seat: Seat,
    phase: int,
    weights: StackedWeights,
    step: StepRows,
    room: Room,
    pool: Numbers,
    works: Works,
    exact: bool,
    logits: Floats,  # [reads, vocabulary, with room for whole fours]
) -> None:
    """Compute this thread's part of the step; ``logits`` are as the weights' type rounds them."""
    rows, layers = step.token_ids.shape[0], weights.input_norms.shape[0]
    inner = weights.gate_up.shape[1] // 2
    hidden, tiles = room.hidden, step.tiles
    embed_rows(seat, phase, weights, step, room, FOLDED)
    phase = meet(seat, phase)
    for layer in range(layers):
        last = layer == layers - 1
        multiply(seat, phase, room.normed, rows, weights.query_key_value[layer], room.sums)
        phase = meet(seat, phase)
        turn_rows(seat, phase, weights, layer, step, room, pool)
        phase = meet(seat, phase)
        if last:
            rows = step.read_rows.shape[0]
            tiles = step.read_tiles
            if rows == 0:
                return
        attend_tiles(
            seat, phase, room.queries, pool, layer, weights.windows[layer], tiles, step.tables, room.mixed, exact, works
        )
        phase = meet(seat, phase)
        gather_rows(seat, phase, weights, last, step, room, FOLDED)
        if last:
            hidden = room.kept
        phase = meet(seat, phase)
        multiply(seat, phase, room.attended, rows, weights.attention_output[layer], room.sums)
        phase = meet(seat, phase)
        bias = _layer_bias(weights.attention_output_bias, layer)
        add_rows(seat, phase, hidden, rows, bias, weights.inner_norms[layer], weights, room, FOLDED)
        phase = meet(seat, phase)
        multiply(seat, phase, room.normed, rows, weights.gate_up[layer], room.sums)
        phase = meet(seat, phase)
        bias = _layer_bias(weights.gate_up_bias, layer)
        gate_rows(seat, phase, rows, bias, weights.head, inner, room, FOLDED)
        phase = meet(seat, phase)
        multiply(seat, phase, room.inner, rows, weights.down[layer], room.sums)
        phase = meet(seat, phase)
        bias = _layer_bias(weights.down_bias, layer)
        norm = weights.final_norm if last else weights.input_norms[layer + 1]
        add_rows(seat, phase, hidden, rows, bias, norm, weights, room, FOLDED)
        phase = meet(seat, phase)
    multiply(seat, phase, room.normed, rows, weights.head, logits)
    phase = meet(seat, phase)
    row = take(seat, phase)
    while row < rows:
        for index in range(logits.shape[1]):
            logits[row, index] = rounded(logits[row, index], weights.head)
        row = take(seat, phase)
