"""An engine without a model whose answers depend on every byte of KV that it reads.

The "KV" of a token is a digest of the KV before it, read back through the block table, and of the token itself; the
next token is drawn from a digest of all KV of the sequence. So one wrong, stale, shifted or torn block changes every
token that follows, and a test that compares tokens compares the content of all blocks. Memory starts with noise: what
was never written cannot pass for zeroes.
"""

import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import Grammar, Sampling
from inference_engine.step import SequenceSlice, SliceResult, StepPlan, StepResult
from tests.eventually import eventually

KV_BYTES = 16
VOCAB_SIZE = 97
FAKE_LAYOUT = KvLayout(layers=1, kv_heads=1, head_dim=2, block_size_tokens=4, dtype="float32")
FAKE_MODEL = ModelIdentity(name="fake", fingerprint="f" * 32, vocab_size=VOCAB_SIZE, max_context_tokens=4096)
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=7, max_tokens=8, stop_token_ids=frozenset())


Block = np.ndarray[tuple[int], np.dtype[np.uint8]]


class FakeMemory:
    """Blocks of bytes, as `inference_engine.kv_pool.KvPool` has them."""

    def __init__(self, total_blocks: int, layout: KvLayout = FAKE_LAYOUT) -> None:
        self.total_blocks = total_blocks
        self.block_bytes = layout.block_bytes
        self._layout = layout
        noise = np.random.default_rng(1)
        self.bytes = noise.integers(0, 256, (total_blocks, layout.block_bytes), dtype=np.uint8)

    @property
    def rows(self) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        return self.bytes

    def buffer(self, index: int) -> Block:
        block: Block = self.bytes[index]
        return block

    def copy_block(self, source: int, target: int) -> None:
        self.bytes[target] = self.bytes[source]

    def clear_unused(self, index: int, tokens: int) -> None:
        self.bytes[index, tokens * KV_BYTES :] = 0

    def slot(self, block_table: Sequence[int], position: int) -> Block:
        size = self._layout.block_size_tokens
        start = position % size * KV_BYTES
        return self.buffer(block_table[position // size])[start : start + KV_BYTES]


class StepGate:
    """Lets a number of engine steps through and makes the others wait."""

    def __init__(self) -> None:
        self._semaphore = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._left = 0

    def release(self, count: int) -> None:
        """Let ``count`` more steps begin."""
        with self._lock:
            self._left += count
        if count:
            self._semaphore.release(count)

    def pass_one(self) -> None:
        """Wait for leave to begin a step; called in the engine's thread."""
        assert self._semaphore.acquire(timeout=20), "no test opened the gate"
        with self._lock:
            self._left -= 1

    async def until_used(self) -> None:
        """Wait until every step that was let through has begun."""
        await eventually(lambda: self._left <= 0)


class FakeGrammars:
    """Takes every grammar."""

    def __init__(self) -> None:
        self.prepared: list[Grammar] = []

    async def prepare(self, grammar: Grammar) -> None:
        self.prepared.append(grammar)


class FakeEngine:
    """Steps as `inference_engine.engine.Engine` does.

    ``gate`` makes a step wait until the test opens it; ``failures`` is how many of the next steps raise.
    """

    def __init__(self, total_blocks: int, layout: KvLayout = FAKE_LAYOUT) -> None:
        self.layout = layout
        self.identity = FAKE_MODEL
        self.eos_token_ids: frozenset[int] = frozenset()
        self.memory = FakeMemory(total_blocks, layout)
        self.grammars = FakeGrammars()
        self.failures = 0
        self.gate: StepGate | None = None
        self.plans: list[StepPlan] = []

    def step(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        if self.gate is not None:
            self.gate.pass_one()
        if self.failures:
            self.failures -= 1
            message = "planted"
            raise RuntimeError(message)
        return StepResult(slices=tuple(self._compute(part) for part in plan.slices), elapsed_s=0.001)

    def _compute(self, part: SequenceSlice) -> SliceResult:
        for position, token_id in enumerate(part.token_ids, start=part.start):
            before = self.memory.slot(part.block_table, position - 1).tobytes() if position else b"start"
            kv = hashlib.blake2b(before + token_id.to_bytes(4, "big"), digest_size=KV_BYTES).digest()
            self.memory.slot(part.block_table, position)[:] = np.frombuffer(kv, dtype=np.uint8)
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if part.prompt_logprobs is not None:
            ahead = [] if part.following is None else [part.following]
            targets = [*part.token_ids[1:], *ahead]
            prompt_logprobs = tuple(
                self._told(part.block_table, position, token_id)
                for position, token_id in enumerate(targets, start=part.start)
            )
        if part.draw is None:
            return SliceResult(prompt_logprobs=prompt_logprobs)
        end = part.start + len(part.token_ids)
        asked = part.draw.logprobs is not None
        if part.drafted:
            verified = self._verify(part, part.draw)
            first = end - part.drafted - 1
            told = [self._told(part.block_table, first + place, token) for place, token in enumerate(verified)]
            return SliceResult(token_ids=verified, logprobs=tuple(told) if asked else ())
        drawn = [self._draw(part, seed, end) for seed in (part.draw.seed, *part.forks)]
        logprobs = tuple(self._told(part.block_table, end - 1, token_id) for token_id in drawn) if asked else ()
        return SliceResult(
            token_ids=(drawn[0],),
            logprobs=logprobs[:1],
            prompt_logprobs=prompt_logprobs,
            fork_token_ids=tuple(drawn[1:]),
            fork_logprobs=logprobs[1:],
        )

    def _verify(self, part: SequenceSlice, sampling: Sampling) -> tuple[int, ...]:
        """Draw after the last sure token and after each guess, up to the first that is no guess or ends the answer."""
        end = part.start + len(part.token_ids)
        guesses = part.token_ids[-part.drafted :]
        taken: list[int] = []
        for place in range(part.drafted + 1):
            taken.append(self._draw(part, sampling.seed, end - part.drafted + place))
            if place == part.drafted or taken[-1] != guesses[place] or taken[-1] in sampling.stop_token_ids:
                break
        return tuple(taken)

    def _draw(self, part: SequenceSlice, seed: int, end: int) -> int:
        """Return the token at ``end``: it depends on all KV before, on the seed, and on the tokens if given."""
        assert part.draw is not None
        read = hashlib.blake2b(digest_size=8)
        for position in range(end):
            read.update(self.memory.slot(part.block_table, position).tobytes())
        if part.draw.looks_back:
            assert len(part.before) == part.start, "the tokens before the slice are missing"
            read.update(repr([*part.before, *part.token_ids][:end]).encode())
        if part.draw.temperature > 0:
            read.update(f"{seed}/{end}".encode())
        return int.from_bytes(read.digest(), "big") % VOCAB_SIZE

    def _told(self, block_table: Sequence[int], position: int, token_id: int) -> TokenLogprobs:
        """Return what stands for the logprob of the token after ``position``: it depends on the KV up to there."""
        kv = self.memory.slot(block_table, position)
        logprob = -float(kv[0]) - token_id / 128
        return TokenLogprobs(
            token_id=token_id, logprob=logprob, rank=1 + int(kv[1]), top=((int(kv[2]), logprob + 0.5),)
        )


def fake_answer(prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """Return what one engine writes for one request alone: the oracle."""
    tokens = list(prompt)
    blocks = FAKE_LAYOUT.blocks_for(len(prompt) + sampling.max_tokens)
    engine = FakeEngine(blocks)
    start = 0
    for _ in range(sampling.max_tokens):
        before = tokens[:start]
        part = SequenceSlice(
            token_ids=tokens[start:], start=start, block_table=range(blocks), draw=sampling, before=before
        )
        (token_id,) = engine.step(StepPlan(slices=(part,))).slices[0].token_ids
        start = len(tokens)
        tokens.append(token_id)
        if token_id in sampling.stop_token_ids:
            break
    return tokens[len(prompt) :]
