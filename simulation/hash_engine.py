"""A model without weights whose every answer depends on every byte of KV that it reads.

The KV of a token is a digest of the KV before it, read back through the block table, and of the token. The next token
is a digest of all KV of the sequence that its window shows. A block that is wrong, stale, torn, shifted or not yet
there changes the answer from there on. Memory that a block is allocated in is noise: nothing old can pass for new.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.sampling import Grammar, Sampling, choice_seed
from inference_engine.step import SequenceSlice, SliceResult, StepPlan, StepResult

KV_BYTES = 8
VOCABULARY = 61
BLOCK_TOKENS = 4
_TOKENS = tuple(b"%d" % token_id for token_id in range(VOCABULARY))
_NOTHING_DRAWN = SliceResult()
MODEL = ModelIdentity(name="hash", fingerprint="0" * 32, vocab_size=VOCABULARY, max_context_tokens=256)


def layout(window_tokens: int) -> KvLayout:
    """Return the shape of a block: one layer, one head, eight bytes a token."""
    return KvLayout(
        layers=1,
        kv_heads=1,
        head_dim=1,
        block_size_tokens=BLOCK_TOKENS,
        dtype="float32",
        window_tokens=window_tokens,
    )


class BlockBytes:
    """The blocks. See `kv_transfer.memory.BlockMemory`."""

    def __init__(self, total_blocks: int) -> None:
        self.block_bytes = BLOCK_TOKENS * KV_BYTES
        self.content = bytearray(total_blocks * self.block_bytes)
        self._whole = memoryview(self.content)
        self.rows = [self.buffer(index) for index in range(total_blocks)]
        """See `BlockMemory.rows`."""
        self._scrambles = 0

    def buffer(self, index: int) -> memoryview:
        """Return a block's bytes."""
        start = index * self.block_bytes
        return self._whole[start : start + self.block_bytes]

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block onto another."""
        self.buffer(target)[:] = self.buffer(source)

    def clear_unused(self, index: int, tokens: int) -> None:
        """Zero the slots from ``tokens`` on."""
        begin, end = index * self.block_bytes + tokens * KV_BYTES, (index + 1) * self.block_bytes
        self.content[begin:end] = bytes(end - begin)

    def scramble(self, index: int) -> None:
        """Fill a block with noise that it never held before."""
        self._scrambles += 1
        start = index * self.block_bytes
        noise = xxh3_64_digest(b"noise %d" % self._scrambles)
        self.content[start : start + self.block_bytes] = noise * BLOCK_TOKENS


class HashEngine:
    """Steps as `inference_engine.engine.Engine` does. ``failures`` is how many of the next steps raise."""

    def __init__(self, memory: BlockBytes, window_tokens: int) -> None:
        self.memory = memory
        self.failures = 0
        self.step_s = 0.0
        self._window = window_tokens

    def step(self, plan: StepPlan) -> StepResult:
        """Compute a plan's slices."""
        if self.failures:
            self.failures -= 1
            message = "a planned fault"
            raise RuntimeError(message)
        results = tuple([self._compute(part) for part in plan.slices])
        return StepResult(slices=results, elapsed_s=self.step_s)

    def _compute(self, part: SequenceSlice) -> SliceResult:
        content, table = self.memory.content, part.block_table
        position = part.start
        before = bytes(content[(at := _slot(table, position - 1)) : at + KV_BYTES]) if position else b"start"
        for place, token_id in enumerate(part.token_ids, position):
            before = xxh3_64_digest(before + _TOKENS[token_id])
            at = (table[place // BLOCK_TOKENS] * BLOCK_TOKENS + place % BLOCK_TOKENS) * KV_BYTES  # `_slot`
            content[at : at + KV_BYTES] = before
        position += len(part.token_ids)
        draw = part.draw
        if draw is None:
            return _NOTHING_DRAWN
        first = max(0, position - max(2, self._window)) if self._window else 0
        read = self._read(table, first, position)
        forks = tuple([_draw(read, draw, seed, position) for seed in part.forks]) if part.forks else ()
        return SliceResult(token_ids=(_draw(read, draw, draw.seed, position),), fork_token_ids=forks)

    def _read(self, table: Sequence[int], first: int, end: int) -> bytes:
        """Return the KV of the positions from ``first`` to before ``end``, from their blocks."""
        content, size = self.memory.content, self.memory.block_bytes
        begin_block, skipped = divmod(first, BLOCK_TOKENS)
        blocks = table[begin_block : (end + BLOCK_TOKENS - 1) // BLOCK_TOKENS]
        read = b"".join([content[index * size : index * size + size] for index in blocks])
        return read[skipped * KV_BYTES : (end - begin_block * BLOCK_TOKENS) * KV_BYTES]


def answer(prompt: Sequence[int], sampling: Sampling, choice: int, window_tokens: int) -> list[int]:
    """Return what the model writes after ``prompt`` when nothing goes wrong: the oracle."""
    tokens, last, kv = list(prompt), b"start", bytearray()
    seed = choice_seed(sampling.seed, choice)
    for token_id in tokens:
        kv += (last := xxh3_64_digest(last + _TOKENS[token_id]))
    for _ in range(sampling.max_tokens):
        end = len(tokens)
        first = max(0, end - max(2, window_tokens)) if window_tokens else 0
        tokens.append(_draw(kv[first * KV_BYTES :], sampling, seed, end))
        if tokens[-1] in sampling.stop_token_ids:
            break
        kv += (last := xxh3_64_digest(last + _TOKENS[tokens[-1]]))
    return tokens[len(prompt) :]


class NoGrammars:
    """Nobody asks for one."""

    async def prepare(self, grammar: Grammar) -> None:
        """Refuse."""
        raise NotImplementedError(grammar)


class StepThread(Executor):
    """Stands for the engine's thread: a step begins at once and has its effects ``step_s()`` seconds later."""

    def __init__(self, step_s: Callable[[], float]) -> None:
        self._step_s = step_s

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a step. Returns a future of the running loop, which `asyncio.wrap_future` leaves as it is."""
        step = _Step()
        asyncio.get_running_loop().call_later(self._step_s(), _run, step, fn, args, kwargs)
        return step

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: there is no thread."""


class _Step(asyncio.Future[Any]):
    """A step that computes."""

    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002  # as asyncio calls it
        """Do nothing: what a thread computes cannot be taken back."""
        return False


def _run(future: "asyncio.Future[Any]", fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        result = fn(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  # as a thread's future does
        future.set_exception(error)
    else:
        future.set_result(result)


def _slot(block_table: Sequence[int], position: int) -> int:
    return (block_table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS) * KV_BYTES


def _draw(read: bytes | bytearray, sampling: Sampling, seed: int, position: int) -> int:
    salt = b"%d/%d" % (seed, position) if sampling.temperature > 0 else b"greedy"
    number: int = xxh3_64_intdigest(read + salt)
    return number % VOCABULARY
