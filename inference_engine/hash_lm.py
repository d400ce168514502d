"""HashLM, the engine: `inference_engine.hash_model` over real blocks, without torch.

Life of a slice: its tokens' KV is made from the KV of the token before it, which is read from its block, and written to
the slots that the block table names; then, for each token to be drawn, the KV of **all** tokens before that one is read
through the block table again and hashed. Nothing is remembered between steps, so what an answer depends on is what lies
in the blocks. The blocks have the layout of `inference_engine.kv_pool`, and hand-overs cannot tell the difference.

A step takes as long as the settings say, at least: the rest of its time it sleeps.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cluster_core.errors import PartUnavailable
from cluster_core.layout import DTYPE_BYTES, KvLayout
from cluster_core.sampling import Grammar
from inference_engine.grammar_bounds import refuse
from inference_engine.hash_model import NEEDS_LOGITS, HashModel, digest_of_kv, field_that_needs_logits
from inference_engine.step import SequenceSlice, SliceResult, StepPlan, StepResult
from inference_engine.step_faults import NotDrawn

_WORDS: dict[int, type[np.uint16 | np.uint32]] = {2: np.uint16, 4: np.uint32}
"""A number of KV, as bits, by its bytes."""


class HashPool:
    """The memory of all blocks: bits ``[block, layer, k/v, kv_head, token, head_dim]``."""

    def __init__(self, layout: KvLayout, total_blocks: int) -> None:
        """Raise `PartUnavailable` when there is not so much memory."""
        self.total_blocks = total_blocks
        self.block_bytes = layout.block_bytes
        self._block_size = layout.block_size_tokens
        self._token_bytes = layout.token_bytes
        self._token_shape = (layout.layers, 2, layout.kv_heads, layout.head_dim)
        shape = (total_blocks, *self._token_shape[:3], layout.block_size_tokens, layout.head_dim)
        self._word = _WORDS[DTYPE_BYTES[layout.dtype]]
        try:
            self._storage = np.zeros(shape, dtype=self._word)
        except (MemoryError, ValueError) as error:  # more than an address can tell is a ValueError
            wanted = total_blocks * layout.block_bytes / 2**30
            message = f"total_blocks: {total_blocks} blocks take {wanted:.1f} GiB, which this machine does not have"
            raise PartUnavailable(message) from error
        self.rows: npt.NDArray[np.uint8] = self._storage.reshape(total_blocks, -1).view(np.uint8)  # [block, byte]

    def buffer(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the bytes of a block, to be read or written in place."""
        block: npt.NDArray[np.uint8] = self.rows[index]
        return block

    def copy_block(self, source: int, target: int) -> None:
        """Make block ``target`` hold what block ``source`` holds."""
        self.rows[target] = self.rows[source]

    def clear_unused(self, index: int, tokens: int) -> None:
        """Zero the slots from ``tokens`` on, so that a part-filled block's bytes depend on its tokens alone."""
        self._storage[index, :, :, :, tokens:] = 0

    def write(self, block_table: Sequence[int], start: int, kv: bytes) -> None:
        """Put the KV of consecutive tokens where the table has the positions from ``start`` on."""
        words = np.frombuffer(kv, dtype=self._word)
        if len(kv) == self._token_bytes:  # the usual case, at once
            block, slot = divmod(start, self._block_size)
            self._storage[block_table[block], :, :, :, slot] = words.reshape(self._token_shape)
            return
        tokens = words.reshape(-1, *self._token_shape)
        blocks, slots = np.divmod(np.arange(start, start + len(tokens)), self._block_size)
        self._storage[np.asarray(block_table)[blocks], :, :, :, slots] = tokens

    def read_one(self, block_table: Sequence[int], position: int) -> bytes:
        """Return the KV of the token at ``position``."""
        block, slot = divmod(position, self._block_size)
        kv: bytes = self._storage[block_table[block], :, :, :, slot].tobytes()
        return kv

    def read_all(self, block_table: Sequence[int], tokens: int) -> Iterator[memoryview | bytes]:
        """Return the KV of the first ``tokens`` tokens as it lies in their blocks."""
        full, rest = divmod(tokens, self._block_size)
        if full:
            yield self.rows.take(block_table[:full], axis=0).data
        if rest:
            yield self._storage[block_table[full], :, :, :, :rest].tobytes()


class NoGrammars:
    """Refuses every grammar."""

    async def prepare(self, grammar: Grammar) -> None:
        """Raise `InvalidField`."""
        raise refuse(grammar, NEEDS_LOGITS)


class HashEngine:
    """Steps as `inference_engine.engine.Engine` does."""

    def __init__(
        self,
        model: HashModel,
        total_blocks: int,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Reserve the memory. Raises `PartUnavailable` when there is not so much."""
        self.identity = model.identity
        self.layout = model.layout
        self.eos_token_ids = model.eos_token_ids
        self.memory = HashPool(model.layout, total_blocks)
        self.grammars = NoGrammars()
        self._model = model
        self._clock = clock
        self._sleep = sleep

    def step(self, plan: StepPlan) -> StepResult:
        """Write the KV of the plan's tokens, draw what is to be drawn.

        Raises `NotDrawn` for slices that ask for what needs logits; then nothing is written.
        """
        assert not plan.drafts, "the hash model has no draft model"
        started = self._clock()
        _refuse_what_needs_logits(plan)
        results = tuple(self._compute(piece) for piece in plan.slices)
        left_s = self._step_s(plan) - (self._clock() - started)
        if left_s > 0:
            self._sleep(left_s)
        return StepResult(slices=results, elapsed_s=self._clock() - started)

    def prepare_decode(self, sequences: int) -> None:
        """Nothing has to be prepared."""

    def _compute(self, piece: SequenceSlice) -> SliceResult:
        table, start, memory = piece.block_table, piece.start, self.memory
        before = memory.read_one(table, start - 1) if start else self._model.root_kv
        memory.write(table, start, self._model.kv_after(before, piece.token_ids))
        if piece.draw is None:
            return SliceResult()
        assert not (piece.drafted and piece.forks), "a draft cannot be forked"
        end = start + len(piece.token_ids)
        guesses = (*piece.token_ids[len(piece.token_ids) - piece.drafted :], None)
        drawn: list[int] = []
        for position, guess in enumerate(guesses, start=end - piece.drafted):
            digest = digest_of_kv(memory.read_all(table, position))
            drawn.append(self._model.draw(digest, position, piece.draw, piece.draw.seed))
            if drawn[-1] != guess or guess in piece.draw.stop_token_ids:
                break
        forks = tuple(self._model.draw(digest, end, piece.draw, seed) for seed in piece.forks)
        return SliceResult(token_ids=tuple(drawn), fork_token_ids=forks)

    def _step_s(self, plan: StepPlan) -> float:
        """Return how long the settings let the plan take."""
        settings = self._model.settings
        read = sum(len(piece.token_ids) for piece in plan.slices if not _goes_on(piece))
        writing = settings.decode_step_s if any(_goes_on(piece) for piece in plan.slices) else 0.0
        return writing + (read / settings.prefill_tokens_per_s if settings.prefill_tokens_per_s else 0.0)


def _goes_on(piece: SequenceSlice) -> bool:
    """Whether the slice is an answer's: the token written last, with guesses or without.

    A prompt's last token, where it is computed alone, looks the same.
    """
    return piece.start > 0 and len(piece.token_ids) - piece.drafted == 1


def _refuse_what_needs_logits(plan: StepPlan) -> None:
    asked = [_needs_logits(piece) for piece in plan.slices]
    field = next((name for name in asked if name is not None), None)
    if field is not None:
        raise NotDrawn(field, NEEDS_LOGITS, tuple(place for place, name in enumerate(asked) if name == field))


def _needs_logits(piece: SequenceSlice) -> str | None:
    if piece.prompt_logprobs is not None:
        return "sampling_params.prompt_logprobs"
    return None if piece.draw is None else field_that_needs_logits(piece.draw)
