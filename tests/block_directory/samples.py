"""Values and waits that the directory's tests share."""

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable

from block_directory.settings import DirectorySettings
from cluster_core.blocks import BlockEvent, BlocksRemoved, BlocksStored, CacheCleared
from cluster_core.identity import BlockHash, Incarnation, Role, WorkerId
from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.workers import WorkerRecord

LEASE_S = 30.0
"""Longer than any test."""

_lives = itertools.count(0xABC000)


def quick_settings(**changes: float | str) -> DirectorySettings:
    values: dict[str, float | str] = {
        "cluster": f"test-{secrets.token_hex(6)}",
        "lease_s": 0.3,
        "call_timeout_s": 2.0,
        "gather_s": 0.0,
        "tail_wait_s": 0.02,
        "retry_min_s": 0.005,
        "retry_max_s": 0.02,
        "resync_spread_s": 0.01,
        "snapshot_pause_s": 0.01,
    }
    return DirectorySettings(**(values | changes))  # type: ignore[arg-type]  # checked by the class itself


def record(worker_id: str = "decode-0", incarnation: int = 0, role: Role = Role.DECODE) -> WorkerRecord:
    return WorkerRecord(
        worker_id=WorkerId(worker_id),
        incarnation=Incarnation(incarnation or next(_lives)),
        role=role,
        address="127.0.0.1:5001",
        transport="loopback",
        model=ModelIdentity(name="small", fingerprint="ab12", vocab_size=256, max_context_tokens=512),
        layout=KvLayout(layers=2, kv_heads=1, head_dim=8, block_size_tokens=16, dtype="float32"),
        total_blocks=64,
        pid=4711,
    )


def block(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "big"))


def blocks(*numbers: int) -> tuple[BlockHash, ...]:
    return tuple(block(number) for number in numbers)


def stored(*numbers: int) -> BlocksStored:
    return BlocksStored(hashes=blocks(*numbers))


def removed(*numbers: int) -> BlocksRemoved:
    return BlocksRemoved(hashes=blocks(*numbers))


async def eventually(holds: Callable[[], bool | Awaitable[bool]], deadline_s: float = 30.0) -> None:
    """Return as soon as ``holds`` does; fail at the deadline."""
    async with asyncio.timeout(deadline_s):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.002)


class Pool:
    """What a publisher needs of a block pool."""

    def __init__(self) -> None:
        self.held: set[BlockHash] = set()
        self._events: list[BlockEvent] = []

    def store(self, *numbers: int) -> None:
        self.held.update(blocks(*numbers))
        self._events.append(stored(*numbers))

    def remove(self, *numbers: int) -> None:
        self.held.difference_update(blocks(*numbers))
        self._events.append(removed(*numbers))

    def clear(self) -> None:
        self.held.clear()
        self._events.append(CacheCleared())

    def drain_events(self) -> list[BlockEvent]:
        events, self._events = self._events, []
        return events

    def cached_hashes(self) -> list[BlockHash]:
        return sorted(self.held)
