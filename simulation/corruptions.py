"""The corruption campaign: real exporters and importers, blocks that something corrupts, and blocks that nothing does.

Every hand-over of a corrupted block must fail, and what the importer then calls verified must be what was sealed; of
the others none may fail. Some hand-overs are fetches from a cache, which may bring less and need not fail for it. Of
others the blocks travel packed, and what must then be at the importer is what rounding makes of what was sealed.
Blocks are small (`LAYOUT`) and full of random bytes, so a wrong one never looks right.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster_core.errors import BatonError, LegFailed
from cluster_core.hash_chain import HASH_BYTES
from cluster_core.holds import LeaseHold, RequestHold
from cluster_core.identity import Attempt, BlockHash, Incarnation, RequestId, WorkerId
from cluster_core.links import LinkReport
from inference_engine.block_pool import BlockPool
from kv_transfer.export_memory import SealedBlock
from kv_transfer.exporter import Export, Exporter
from kv_transfer.import_job import ImportJob
from kv_transfer.importer import Importer
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from simulation.campaign_blocks import LAYOUT, MOST_BLOCKS, SETTINGS, BlockRows, Rounding, as_numbers
from simulation.corrupting import AT_SOURCE, CorruptingStream, CorruptingTransport, Corruption, Damage
from simulation.virtual_loop import CURRENT, VirtualLoop

ONE = Attempt(1)
FETCHES = 0.25
"""The part of all hand-overs that are fetches."""
PACKED = 0.125
"""The part of the others whose blocks travel packed."""
NEAR, FAR = WorkerId("prefill-0"), WorkerId("prefill-0 over a slow link")
"""The exporter, by two links. Only of the slow one the importer knows a rate, so only there it offers to round."""
SLOW_BYTES_PER_S = 1e-3
LONGEST_S = 60.0
"""Every wait of a hand-over is over by then."""


@dataclass(slots=True)
class Campaign:
    """What came of it."""

    injected: int = 0
    caught: int = 0
    clean_blocks: int = 0
    fetches: int = 0
    """How many of the hand-overs were."""
    packed: int = 0
    """Of how many the blocks travelled packed."""
    false_alarms: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What must not have happened: corrupted blocks that were accepted, right ones that were refused."""

    def facts(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "corruptions": self.injected,
            "caught": self.caught,
            "by_kind": dict(sorted(self.kinds.items())),
            "clean_blocks": self.clean_blocks,
            "false_alarms": self.false_alarms,
            "fetches": self.fetches,
            "packed": self.packed,
            "wrong": self.wrong,
        }


def run_campaign(
    *, seed: int, corruptions: int, blocks: int, on_progress: Callable[[int], None] = lambda _: None
) -> Campaign:
    """Move ``corruptions`` blocks that are corrupted, each kind in turn, and then ``blocks`` that are not."""
    campaign, kinds = Campaign(), list(Corruption)
    pair = Pair(random.Random(f"corruptions {seed}"))  # noqa: S311  # a simulation, no secret
    try:
        while campaign.injected < corruptions:
            pair.corrupted(kinds[campaign.injected % len(kinds)], campaign)
            on_progress(campaign.injected)
        while campaign.clean_blocks < blocks:
            pair.clean(campaign)
            on_progress(campaign.injected + campaign.clean_blocks)
    finally:
        pair.close()
    return campaign


class Pair:
    """A worker that exports and one that imports, on a virtual clock. One hand-over runs at a time."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self._loop = VirtualLoop(self._note)
        self._token = CURRENT.set(self._loop.world)
        self._errors: list[str] = []
        self.number = 0
        self.lendable: dict[BlockHash, int] = {}
        """Blocks of the exporter's cache."""
        network = LoopbackNetwork()
        self.sender, receiver = CorruptingTransport(network), LoopbackTransport(network)
        self.sources, self.targets = BlockRows(2 * MOST_BLOCKS), BlockRows(2 * MOST_BLOCKS)
        self.source_pool, self.target_pool = BlockPool(2 * MOST_BLOCKS), BlockPool(2 * MOST_BLOCKS)
        self.rounding = Rounding()

        async def start() -> None:
            await self.sender.start()
            await receiver.start()
            self.exporter = Exporter(
                transport=self.sender,
                memory=self.sources,
                holds=self.source_pool,
                incarnation=Incarnation(1),
                layout=LAYOUT,
                settings=SETTINGS,
                find_run=self._find_run,
                clock=self._loop.time,
            )
            self.importer = Importer(
                transport=receiver,
                memory=self.targets,
                holds=self.target_pool,
                worker_id=WorkerId("decode-0"),
                incarnation=Incarnation(2),
                layout=LAYOUT,
                settings=SETTINGS,
                clock=self._loop.time,
            )
            self.importer.links.enter(
                LinkReport(
                    peer=FAR,
                    incarnation=Incarnation(1),
                    transport="loopback",
                    large_in_bytes_per_s=SLOW_BYTES_PER_S,
                    small_in_bytes_per_s=SLOW_BYTES_PER_S,
                )
            )

        self._run(start())

    def clean(self, campaign: Campaign) -> None:
        """Hand over blocks that nothing corrupts."""
        handover = _Handover(self, self.draw.randint(1, MOST_BLOCKS), fetches=self.draw.random() < FETCHES)
        error = self._run(handover.run(None))
        campaign.clean_blocks += len(handover.moved)
        refused = set(handover.moved) - handover.readable(error)
        if refused:
            campaign.false_alarms += len(refused)
            campaign.wrong.append(f"{len(refused)} right blocks were refused: {error}")
        elif handover.differing():
            campaign.wrong.append(f"positions {handover.differing()} differ, though nothing was corrupted")
        self._finish(handover, campaign)

    def corrupted(self, kind: Corruption, campaign: Campaign) -> None:
        """Hand over blocks one of which is corrupted."""
        fetches = kind not in AT_SOURCE and self.draw.random() < FETCHES
        handover = _Handover(self, self.draw.randint(2, 12), fetches=fetches)
        victim, other = self.draw.sample(handover.moved, 2) if len(handover.moved) > 1 else (0, 0)
        if victim == other:
            self._finish(handover, campaign)
            return
        damage = Damage(kind, victim, other, self.draw, handover.travelling_bytes)
        damage.older_life = handover.older_life(victim)
        error = self._run(handover.run(damage))
        campaign.injected += 1
        campaign.kinds[kind.value] += 1
        accepted = victim in handover.readable(error) and (error is None or victim in handover.differing())
        wrong = [each for each in handover.differing() if each in handover.readable(error)]
        if not damage.done:
            campaign.wrong.append(f"{kind.value}: it was not injected")
        elif accepted or wrong:
            campaign.wrong.append(f"{kind.value}: accepted, and positions {wrong} differ ({error})")
        else:
            campaign.caught += 1
        self._finish(handover, campaign)

    def close(self) -> None:
        """End both sides."""
        self._loop.close()
        CURRENT.reset(self._token)

    def _finish(self, handover: "_Handover", campaign: Campaign) -> None:
        """Let time pass until every lease is over; then nothing may be held."""
        campaign.fetches += handover.job.lent
        campaign.packed += handover.packed
        handover.give_back()
        self._loop.run(self._loop.now + SETTINGS.lease_s)
        for _ in range(2):
            self._loop.run(self._loop.now + 2 * SETTINGS.lease_s)
            self._run(self.exporter.sweep())
        held = self.source_pool.counts().held + self.target_pool.counts().held
        if held or self.importer.quarantined or self.exporter.orphaned:
            campaign.wrong.append(f"{held} blocks are held afterwards")
        campaign.wrong += self._errors
        self._errors.clear()

    def _find_run(self, hashes: Sequence[BlockHash]) -> list[int]:
        return [self.lendable[each] for each in itertools.takewhile(self.lendable.__contains__, hashes)]

    def _note(self, error: str) -> None:
        self._errors.append(error)

    def _run(self, work: Any) -> Any:
        self._loop.callbacks = 0
        task = self._loop.create_task(work)
        self._loop.run(self._loop.now + LONGEST_S, task.done)
        self._loop.world.tasks.clear()
        return task.result()


class _Handover:
    """One request's blocks on both sides. A part of the leading ones need not move."""

    def __init__(self, pair: Pair, blocks: int, *, fetches: bool) -> None:
        draw = pair.draw
        pair.number += 1
        self._pair = pair
        self._request = RequestId(f"r{pair.number}")
        self._hold = RequestHold(self._request, ONE)
        self._sources = pair.source_pool.allocate(blocks, self._hold)
        self._targets = pair.target_pool.allocate(blocks, self._hold)
        self._older = pair.sources.rows[self._sources]  # a copy
        self._filled = np.frombuffer(draw.randbytes(blocks * LAYOUT.block_bytes), dtype=np.uint8)
        self._filled = self._filled.reshape(blocks, -1).copy()  # [position, byte]
        size = LAYOUT.block_size_tokens
        self._last_tokens = size if fetches else draw.choice((size, draw.randint(1, size - 1)))
        self._filled[-1, self._last_tokens * LAYOUT.token_bytes :] = 0
        self.packed = not fetches and draw.random() < PACKED
        if self.packed:
            as_numbers(self._filled)
        pair.sources.rows[self._sources] = self._filled
        kept = draw.choice((0, 0, draw.randrange(blocks)))
        pair.targets.rows[self._targets] = np.frombuffer(draw.randbytes(self._filled.nbytes), np.uint8).reshape(
            blocks, -1
        )
        pair.targets.rows[self._targets[:kept]] = self._filled[:kept]
        full = blocks - (self._last_tokens < LAYOUT.block_size_tokens)
        self._hashes = tuple(BlockHash(draw.randbytes(HASH_BYTES)) for _ in range(full))
        self.moved = range(kept, blocks)
        self._wanted = self._filled.copy()
        """What the importer must have in the end."""
        if self.packed:
            self._wanted[kept:] = pair.rounding.afterwards(self._filled[kept:])
        self.job = ImportJob(
            request_id=self._request,
            attempt=ONE,
            exporter=FAR if self.packed else NEAR,
            exporter_incarnation=Incarnation(1),
            targets=tuple(self._targets),
            kept=frozenset() if fetches else frozenset(range(kept)),
            hashes=self._hashes,
            first=kept if fetches else 0,
            lent=fetches,
        )
        pair.lendable = dict(zip(self._hashes, self._sources, strict=True)) if fetches else {}

    def readable(self, error: BatonError | None) -> frozenset[int]:
        """Return the positions that the importer may read afterwards."""
        whole = error is None and not self.job.lent
        return frozenset(range(len(self._targets))) if whole else self.job.remains.verified

    def travelling_bytes(self, position: int) -> bytes:
        """Return what a block is on its way, as it was sealed."""
        return self._travelling(self._filled[position].tobytes(), position)

    def older_life(self, position: int) -> bytes:
        """Return what would travel of a block if it were what lay there before it was this request's."""
        return self._travelling(self._older[position].tobytes(), position)

    def _travelling(self, content: bytes, position: int) -> bytes:
        return self._pair.rounding.on_the_way(content, position, self._hash_of(position)) if self.packed else content

    def _hash_of(self, position: int) -> BlockHash | None:
        return self._hashes[position] if position < len(self._hashes) else None

    def differing(self) -> list[int]:
        """Return the positions that do not hold at the importer what was sealed, or what rounding makes of it."""
        wrong = (self._pair.targets.rows[self._targets] != self._wanted).any(axis=1)
        return [int(each) for each in np.flatnonzero(wrong)]

    async def run(self, damage: Damage | None) -> BatonError | None:
        """Export and import; return how the import failed, or None."""
        pair = self._pair
        pair.sender.damage = damage
        if self.job.lent:
            return await self._import(damage)
        export = pair.exporter.open(self._request, ONE)
        early = pair.draw.randint(0, len(self._sources))
        if damage is not None and damage.kind in AT_SOURCE:
            early = len(self._sources)
        self._seal(export, 0, early)
        if damage is not None and damage.kind in AT_SOURCE:
            self._spoil(damage)
        importing = asyncio.create_task(self._import(damage))
        await asyncio.sleep(0.001)
        self._seal(export, early, len(self._sources))
        export.finish(7)
        return await importing

    async def _import(self, damage: Damage | None) -> BatonError | None:
        stream = CorruptingStream(self._pair.exporter, damage)
        importing = asyncio.create_task(self._pair.importer.run(self.job, stream))
        await asyncio.wait({importing})
        error = importing.exception()
        await stream.close()
        assert error is None or isinstance(error, LegFailed), f"not an error of a leg: {error!r}"
        return error

    def _seal(self, export: Export, begin: int, end: int) -> None:
        blocks = [
            SealedBlock(
                position=position,
                index=self._sources[position],
                hash=self._hash_of(position),
                tokens=LAYOUT.block_size_tokens if position < len(self._hashes) else self._last_tokens,
            )
            for position in range(begin, end)
        ]
        if blocks:
            export.seal(blocks)

    def _spoil(self, damage: Damage) -> None:
        """Change a block after it was sealed, with or without a new owner."""
        pool, index = self._pair.source_pool, self._sources[damage.victim]
        damage.done = True
        rows = self._pair.sources.rows
        if damage.kind is Corruption.FLIPPED_AT_SOURCE:
            rows[index, self._pair.draw.randrange(LAYOUT.block_bytes)] ^= 1 << self._pair.draw.randrange(8)
            return
        if damage.kind is Corruption.SWAPPED_AT_SOURCE:
            two = [index, self._sources[damage.other]]
            rows[two] = rows[two[::-1]]
            return
        if damage.kind is not Corruption.OVERWRITTEN:
            pool.release_block(index, LeaseHold(self._request, ONE))
            pool.release_block(index, self._hold)
            stranger = RequestHold(RequestId(f"{self._request}-x"), ONE)
            assert index in pool.allocate(pool.available(), stranger), "the block was free"
            pool.release(stranger)
            self._sources = [each for each in self._sources if each != index]
        if damage.kind is not Corruption.REUSED_UNCHANGED:
            self._pair.sources.buffer(index)[:] = np.frombuffer(self._pair.draw.randbytes(LAYOUT.block_bytes), np.uint8)

    def give_back(self) -> None:
        """End the request on both sides."""
        self._pair.source_pool.release(self._hold)
        self._pair.target_pool.release(self._hold)
