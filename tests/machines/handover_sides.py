"""What a hand-over joins: two workers' pools and memories, and one attempt's place in both."""

import asyncio
import hashlib
from dataclasses import dataclass, field

from cluster_core.holds import LeaseHold, RequestHold
from cluster_core.identity import Attempt, Incarnation, RequestId, WorkerId
from inference_engine.block_pool import BlockPool, NoFreeBlocks
from inference_engine.sequence import TokenSequence
from kv_transfer.exporter import Export
from kv_transfer.import_job import Imported, ImportJob
from kv_transfer.settings import TransferSettings
from tests.fake_engine import FAKE_LAYOUT, KV_BYTES, FakeMemory
from tests.machines.held_channel import HeldChannel

SIZE = FAKE_LAYOUT.block_size_tokens
POOL_BLOCKS = 9
PROMPTS = [(1, 2, 3), (1, 2, 3, 4), (*range(1, 10),), (*range(1, 14),), (50, *range(2, 13))]
SETTINGS = TransferSettings(
    transport="loopback",
    lease_s=4.0,
    grace_s=1.0,
    open_timeout_s=5.0,
    pull_timeout_s=5.0,
    prefill_timeout_s=8.0,
    settle_timeout_s=1.0,
    blocks_in_flight=2,
)


def kv_of(prompt: tuple[int, ...], position: int) -> bytes:
    """Return the KV of one token: it depends on all tokens up to it."""
    return hashlib.blake2b(bytes(prompt[: position + 1]), digest_size=KV_BYTES).digest()


class Site:
    """One worker's pool and memory, and the requests of others that take blocks there."""

    def __init__(self) -> None:
        self.pool = BlockPool(POOL_BLOCKS)
        self.memory = FakeMemory(POOL_BLOCKS)
        self.strangers: dict[RequestHold, list[int]] = {}

    def sequence(self, hold: RequestHold, prompt: tuple[int, ...]) -> TokenSequence:
        return TokenSequence(pool=self.pool, hold=hold, root=b"root", token_ids=prompt, block_size_tokens=SIZE)

    def take(self, hold: RequestHold, count: int) -> None:
        """Let somebody else have blocks and write in them."""
        try:
            indices = self.pool.allocate(count, hold)
        except NoFreeBlocks:
            return
        self.strangers[hold] = indices
        for index in indices:
            self.memory.bytes[index] = _stranger_byte(hold)

    def give_back(self) -> None:
        self.pool.release(self.strangers.popitem()[0])

    def check_strangers(self) -> None:
        for hold, indices in self.strangers.items():
            for index in indices:
                assert (self.memory.bytes[index] == _stranger_byte(hold)).all(), "bytes landed in another's block"


def _stranger_byte(hold: RequestHold) -> int:
    return 128 + int(hold.request_id[1:]) % 128


@dataclass(slots=True, eq=False)
class Handover:
    """One attempt at one request, both sides of it."""

    request_id: RequestId
    attempt: Attempt
    prompt: tuple[int, ...]
    channel: HeldChannel = field(default_factory=HeldChannel)
    reading: TokenSequence | None = None
    export: Export | None = None
    writing: TokenSequence | None = None
    task: "asyncio.Task[Imported] | None" = None
    disturbed: bool = False
    taken_over: bool = False

    @property
    def lease(self) -> LeaseHold:
        return LeaseHold(self.request_id, self.attempt)


def import_job(handover: Handover, writing: TokenSequence, life: Incarnation) -> ImportJob:
    """Return what the decode worker asks for: the blocks of ``writing`` that its cache did not have."""
    return ImportJob(
        request_id=handover.request_id,
        attempt=handover.attempt,
        exporter=WorkerId("prefill-0"),
        exporter_incarnation=life,
        targets=tuple(writing.block_table),
        kept=frozenset(range(writing.computed // SIZE)),
        hashes=tuple(writing.hashes()),
    )
