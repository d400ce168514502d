"""A model without weights whose every answer depends on every byte of KV that it reads.

The KV of a token is a digest of the KV before it, read back through the block table, and of the token. The next token
is a digest of all KV of the sequence that its window shows. A block that is wrong, stale, torn, shifted or not yet
there changes the answer from there on. Memory that a block is allocated in is noise: nothing old can pass for new.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.sampling import Grammar, Sampling, choice_seed
from inference_engine.step import SequenceSlice, SliceResult, StepPlan, StepResult

KV_BYTES = 8
VOCABULARY = 61
BLOCK_TOKENS = 4
MODEL = ModelIdentity(name="hash", fingerprint="0" * 32, vocab_size=VOCABULARY, max_context_tokens=256)

_blake2b = hashlib.blake2b


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
        self.buffer(index)[:] = _blake2b(b"%d %d" % (index, self._scrambles), digest_size=self.block_bytes).digest()


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
        for token_id in part.token_ids:
            before = _kv(before, token_id)
            at = _slot(table, position)
            content[at : at + KV_BYTES] = before
            position += 1
        if part.draw is None:
            return SliceResult()
        first = max(0, position - max(2, self._window)) if self._window else 0
        read = b"".join([content[(at := _slot(table, each)) : at + KV_BYTES] for each in range(first, position)])
        forks = tuple([_draw(read, part.draw, seed, position) for seed in part.forks])
        return SliceResult(token_ids=(_draw(read, part.draw, part.draw.seed, position),), fork_token_ids=forks)


def answer(prompt: Sequence[int], sampling: Sampling, choice: int, window_tokens: int) -> list[int]:
    """Return what the model writes after ``prompt`` when nothing goes wrong: the oracle."""
    tokens, kv = list(prompt), [b"start"]
    seed = choice_seed(sampling.seed, choice)
    for token_id in tokens:
        kv.append(_kv(kv[-1], token_id))
    for _ in range(sampling.max_tokens):
        end = len(tokens)
        first = max(0, end - max(2, window_tokens)) if window_tokens else 0
        tokens.append(_draw(b"".join(kv[first + 1 :]), sampling, seed, end))
        if tokens[-1] in sampling.stop_token_ids:
            break
        kv.append(_kv(kv[-1], tokens[-1]))
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

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Run a step."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        asyncio.get_running_loop().call_later(self._step_s(), _run, future, fn, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: there is no thread."""


def _run(future: "Future[Any]", fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        result = fn(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  # as a thread's future does
        future.set_exception(error)
    else:
        future.set_result(result)


def _slot(block_table: Sequence[int], position: int) -> int:
    return block_table[position // BLOCK_TOKENS] * BLOCK_TOKENS * KV_BYTES + position % BLOCK_TOKENS * KV_BYTES


def _kv(before: bytes, token_id: int) -> bytes:
    return _blake2b(b"%b%d" % (before, token_id), digest_size=KV_BYTES).digest()


def _draw(read: bytes, sampling: Sampling, seed: int, position: int) -> int:
    salt = b"%d/%d" % (seed, position) if sampling.temperature > 0 else b""
    return int.from_bytes(_blake2b(read + salt, digest_size=8).digest(), "big") % VOCABULARY
