"""The Llama family on the CPU, compiled: the same arithmetic as `inference_engine.decoder`, without torch between.

A step of few rows is one compiled function that multiplies with weights as they lie in memory
(`inference_engine.step_kernel`). With many rows the arithmetic of the products outweighs everything else, so torch's
library does them, on float32 copies of a layer's weights where the CPU has no bfloat16 instructions; what is between
the products stays compiled. ``batch_invariant`` keeps to the first way whatever the number of rows: there, a row's
logits do not depend on the other rows, to the last bit.
"""

import numpy as np
import torch

from inference_engine.attention import AttentionBackend
from inference_engine.attention_compiled import CompiledAttention, CompiledStep, numbers_of, read_tiles_of
from inference_engine.attention_kernel import Numbers, attend_tiles
from inference_engine.batch import Batch
from inference_engine.code_builder import GROUP, TILE_COLUMNS
from inference_engine.decoder import Decoder
from inference_engine.kv_pool import KvPool
from inference_engine.linear import NARROW_IS_SLOW, Products
from inference_engine.model_config import ModelConfig
from inference_engine.product_kernel import PLAIN, padded_to
from inference_engine.rope import Rope
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
from inference_engine.step_kernel import compute_step
from inference_engine.weights import ModelWeights

MOST_FEW_ROWS = 384
"""Up to here reading the weights as they lie is faster than widening them for torch's library."""
_MOST_FEW_ROWS_NATIVE = 16
"""The same where that library needs no copies: float32, or a CPU that multiplies bfloat16."""
_KEPT_ROWS = 256
"""Room for so many rows is kept from step to step."""


class CompiledDecoder:
    """A model's weights, bound to a pool and to the compiled attention over it."""

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        attention: CompiledAttention,
        *,
        batch_invariant: bool = False,
    ) -> None:
        self._config = config
        self._weights = weights
        self._stacked = _stack(config, weights)
        self._narrow = weights.embedding.dtype == torch.bfloat16
        self._few_rows = MOST_FEW_ROWS if self._narrow and NARROW_IS_SLOW else _MOST_FEW_ROWS_NATIVE
        self._invariant = batch_invariant
        self.attention = attention
        self._rope = Rope(config.rope, config.head_dim, torch.device("cpu"))
        self._kept_room: Room | None = None
        self._products = Products()

    def logits(self, batch: Batch) -> torch.Tensor:
        """Compute the batch, write its KV into the pool, and return the logits ``[draws, vocabulary]`` in float32."""
        prepared = self.attention.prepare(batch)
        step = self._step_rows(batch, prepared)
        rows, reads = len(step.token_ids), len(step.read_rows)
        room = self._room(rows)
        vocabulary = self._config.vocab_size
        if not self._invariant and rows > self._few_rows:
            return self._compute_many(step, room, reads)
        logits = torch.empty((reads, padded_to(vocabulary, TILE_COLUMNS)))
        works = self.attention.works(self._config.heads)
        self.attention.team.run(
            compute_step, self._stacked, step, room, self.attention.pool, works, self._invariant, logits.numpy()
        )
        return logits if logits.shape[1] == vocabulary else logits[:, :vocabulary].contiguous()

    def _step_rows(self, batch: Batch, prepared: CompiledStep) -> StepRows:
        dtype = self._weights.embedding.dtype
        cosine, sine = (table[:, 0].float().numpy() for table in self._rope.tables(batch.positions, dtype))
        return StepRows(
            token_ids=batch.token_ids.numpy(),
            slot_blocks=batch.slot_blocks.numpy(),
            slot_offsets=batch.slot_offsets.numpy(),
            cosine=cosine,
            sine=sine,
            read_rows=batch.draw_rows.numpy(),
            tiles=prepared.tiles,
            read_tiles=read_tiles_of(batch, prepared.tiles),
            tables=prepared.tables,
        )

    def _room(self, rows: int) -> Room:
        if rows > _KEPT_ROWS:
            return self._make_room(rows)
        if self._kept_room is None or len(self._kept_room.hidden) < rows:
            self._kept_room = self._make_room(min(_KEPT_ROWS, padded_to(rows, 32)))
        return self._kept_room

    def _make_room(self, rows: int) -> Room:
        config, threads = self._config, self.attention.team.threads
        heads, inner = config.heads * config.head_dim, config.intermediate_size
        hidden = config.hidden_size
        most = max((config.heads + 2 * config.kv_heads) * config.head_dim, hidden, 2 * inner)
        heads_shape = rows, config.heads, config.head_dim

        def numbers() -> Numbers:
            return np.empty(heads_shape, np.uint16) if self._narrow else np.empty(heads_shape, np.float32)

        wide = {
            "hidden": (rows, hidden),
            "kept": (rows, hidden),
            "normed": (rows, padded_to(hidden, GROUP)),
            "sums": (rows, padded_to(most, TILE_COLUMNS)),
            "attended": (rows, padded_to(heads, GROUP)),
            "inner": (rows, padded_to(inner, GROUP)),
            "lines": (threads, padded_to(max(hidden, heads, inner), GROUP)),
        }
        return Room(
            queries=numbers(),
            mixed=numbers(),
            **{name: np.empty(shape, np.float32) for name, shape in wide.items()},
        )

    def _compute_many(self, step: StepRows, room: Room, reads: int) -> torch.Tensor:
        """Compute a step whose products torch does."""
        team, stacked, pool = self.attention.team, self._stacked, self.attention.pool
        works = self.attention.works(self._config.heads)
        rows, inner = len(step.token_ids), self._config.intermediate_size
        last = len(self._weights.layers) - 1
        hidden, products = room.hidden, self._products
        team.run(embed_rows, stacked, step, room, PLAIN)
        for index, layer in enumerate(self._weights.layers):
            products.multiply(room.normed[:rows], layer.query_key_value.weight, room.sums)
            team.run(turn_rows, stacked, index, step, room, pool)
            if index == last:
                rows, hidden = reads, room.kept
                if rows == 0:
                    return torch.empty((0, self._config.vocab_size))
            window = self._config.windows[index]
            tiles = step.read_tiles if index == last else step.tiles
            team.run(attend_tiles, room.queries, pool, index, window, tiles, step.tables, room.mixed, False, works)  # noqa: FBT003  # a kernel's argument has no name here
            team.run(gather_rows, stacked, index == last, step, room, PLAIN)
            products.multiply(room.attended[:rows], layer.attention_output.weight, room.sums)
            bias = _of_layer(stacked.attention_output_bias, index)
            team.run(add_rows, hidden, rows, bias, stacked.inner_norms[index], stacked, room, PLAIN)
            products.multiply(room.normed[:rows], layer.gate_up.weight, room.sums)
            team.run(gate_rows, rows, _of_layer(stacked.gate_up_bias, index), stacked.head, inner, room, PLAIN)
            products.multiply(room.inner[:rows], layer.down.weight, room.sums)
            norm = stacked.final_norm if index == last else stacked.input_norms[index + 1]
            bias = _of_layer(stacked.down_bias, index)
            team.run(add_rows, hidden, rows, bias, norm, stacked, room, PLAIN)
        logits = torch.empty((rows, self._config.vocab_size))
        products.multiply(room.normed[:rows], self._weights.head, logits.numpy())
        return logits.to(self._weights.head.dtype).float()


def make_decoder(
    config: ModelConfig, weights: ModelWeights, pool: KvPool, attention: AttentionBackend, *, batch_invariant: bool
) -> "CompiledDecoder | Decoder":
    """Return the compiled decoder where attention is compiled, and the one that torch computes elsewhere."""
    if isinstance(attention, CompiledAttention):
        return CompiledDecoder(config, weights, attention, batch_invariant=batch_invariant)
    return Decoder(config, weights, pool, attention)


def _of_layer(biases: Numbers, layer: int) -> Numbers:
    return biases[layer] if len(biases) else biases.reshape(-1)


def _stack(config: ModelConfig, weights: ModelWeights) -> StackedWeights:
    """Return the weights as the kernels take them, in the same memory."""
    stacked = weights.stacked

    def numbers(tensor: torch.Tensor | None, width: int = 0) -> Numbers:
        return numbers_of(weights.embedding.new_empty((0, width)) if tensor is None else tensor)

    def whole(tensor: torch.Tensor) -> Numbers:
        """Return a matrix with the zeros that its rows end in."""
        inputs = padded_to(tensor.shape[-1], GROUP)
        return numbers(torch.as_strided(tensor, (*tensor.shape[:-1], inputs), tensor.stride()))

    return StackedWeights(
        embedding=numbers(weights.embedding),
        input_norms=numbers(stacked.input_norm),
        query_key_value=whole(stacked.query_key_value.weight),
        query_key_value_bias=numbers(stacked.query_key_value.bias),
        query_norms=numbers(stacked.query_norm),
        key_norms=numbers(stacked.key_norm),
        attention_output=whole(stacked.attention_output.weight),
        attention_output_bias=numbers(stacked.attention_output.bias),
        inner_norms=numbers(stacked.inner_norm),
        gate_up=whole(stacked.gate_up.weight),
        gate_up_bias=numbers(stacked.gate_up.bias),
        down=whole(stacked.down.weight),
        down_bias=numbers(stacked.down.bias),
        final_norm=numbers(weights.final_norm),
        head=whole(weights.head),
        windows=np.array(config.windows, np.int32),
        epsilon=np.float32(config.norm_epsilon),
    )
