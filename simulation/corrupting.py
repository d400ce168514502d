"""What corrupts blocks on their way: a transport and a stream between a real exporter and a real importer.

`Corruption` names the ways. Those of `IN_FLIGHT` change the bytes of a block between its memory and the other one,
those of `IN_MESSAGES` what the exporter says of it, those of `AT_SOURCE` the block itself after it was sealed. Messages
are serialised and parsed as on a wire.
"""

import asyncio
import random
from asyncio import Future
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from enum import Enum
from typing import Any

from cluster_core.blocks import BlockReference
from cluster_core.errors import WorkerLost
from cluster_core.handoff import BlocksSealed, ExporterMessage, ImporterMessage, PullBlocks
from cluster_core.hash_chain import HASH_BYTES
from cluster_core.identity import BlockHash
from cluster_rpc.handoff_messages import exporter_from_proto, exporter_to_proto, importer_from_proto, importer_to_proto
from cluster_rpc.v1 import handoff_pb2 as pb
from kv_transfer.exporter import Exporter
from kv_transfer.loopback_transport import LoopbackTransport
from kv_transfer.lots import Landed, Lot
from kv_transfer.transport import Peer


class Corruption(Enum):
    """What happens to one block of a hand-over, or to two."""

    BIT_FLIPPED = "a bit flipped"
    CUT_SHORT = "cut short"
    SWAPPED = "two blocks swapped"
    SHIFTED = "shifted by some bytes"
    SHIFTED_INTO_NEXT = "shifted into the next block"
    FOREIGN = "a block of another request"
    OLDER_LIFE = "what lay at the same index before"
    ZEROED = "zeroed"
    TORN = "half of it another block's"
    WRONG_POSITION = "named with another block's position"
    WRONG_DIGEST = "named with a wrong digest"
    NO_DIGEST = "named without a digest"
    SHORT_DIGEST = "named with a part of its digest"
    WRONG_HASH = "named with a wrong hash"
    WRONG_TOKENS = "named with a wrong number of tokens"
    NAMED_TWICE = "named twice, differently"
    NOT_NAMED = "not named"
    OVERWRITTEN = "overwritten after it was sealed"
    REUSED = "given to another request after it was sealed"
    REUSED_UNCHANGED = "given to another request that has not written yet"
    FLIPPED_AT_SOURCE = "a bit flipped after it was sealed"
    SWAPPED_AT_SOURCE = "two blocks swapped after they were sealed"


IN_FLIGHT = frozenset(list(Corruption)[:9])
IN_MESSAGES = frozenset(list(Corruption)[9:17])
AT_SOURCE = frozenset(list(Corruption)[17:])

Rows = Callable[[int], bytes]


class Damage:
    """One corruption of one hand-over. ``done``: it has happened."""

    def __init__(self, kind: Corruption, victim: int, other: int, draw: random.Random, content: Rows) -> None:
        """``victim`` and ``other`` are positions, all different; ``content`` returns what travels of one."""
        self.kind = kind
        self.victim = victim
        self.other = other
        self.older_life = b""
        """What would travel of what lay in the victim's block before."""
        self.done = False
        self.position_of: dict[int, int] = {}
        """Positions by the tag that the importer gave them."""
        self._draw = draw
        self._content = content

    def on_the_wire(self, tag: int, content: bytes) -> bytes:
        """Return what arrives under ``tag`` in place of ``content``."""
        position = self.position_of.get(tag)
        if self.kind is Corruption.SWAPPED and position in {self.victim, self.other}:
            self.done = True
            return self._content(self.other if position == self.victim else self.victim)
        if position != self.victim or self.kind not in IN_FLIGHT:
            return content
        self.done = True
        return self._changed(content)

    def _changed(self, content: bytes) -> bytes:
        cut = self._draw.randrange(1, len(content))
        changed = {
            Corruption.BIT_FLIPPED: lambda: self._flipped(content),
            Corruption.CUT_SHORT: lambda: content[:cut],
            Corruption.SHIFTED: lambda: content[cut:] + content[:cut],
            Corruption.SHIFTED_INTO_NEXT: lambda: content[cut:] + self._content(self.other)[:cut],
            Corruption.FOREIGN: lambda: self._draw.randbytes(len(content)),
            Corruption.OLDER_LIFE: lambda: self.older_life,
            Corruption.ZEROED: lambda: bytes(len(content)),
            Corruption.TORN: lambda: content[:cut] + self._content(self.other)[cut:],
        }
        return changed[self.kind]()

    def _flipped(self, content: bytes) -> bytes:
        changed = bytearray(content)
        changed[self._draw.randrange(len(changed))] ^= 1 << self._draw.randrange(8)
        return bytes(changed)

    def in_words(self, message: ExporterMessage) -> list[ExporterMessage]:
        """Return what arrives in place of a message of the exporter."""
        if self.kind not in IN_MESSAGES or not isinstance(message, BlocksSealed):
            return [message]
        if self.victim not in {block.position for block in message.blocks}:
            return [message]
        self.done = True
        if self.kind is Corruption.NOT_NAMED:
            named = tuple(block for block in message.blocks if block.position != self.victim)
            return [replace(message, blocks=named)]
        wrong = tuple(self._named(block) if block.position == self.victim else block for block in message.blocks)
        if self.kind is Corruption.NAMED_TWICE:
            return [replace(message, finished=None), replace(message, blocks=wrong)]
        return [replace(message, blocks=wrong)]

    def _named(self, block: BlockReference) -> BlockReference:
        draw, digest = self._draw, block.digest
        match self.kind:
            case Corruption.WRONG_POSITION:
                return replace(block, position=self.other)
            case Corruption.NO_DIGEST:
                return replace(block, digest=b"")
            case Corruption.SHORT_DIGEST:
                return replace(block, digest=digest[: draw.randrange(1, len(digest))])
            case Corruption.WRONG_HASH:
                return replace(block, hash=BlockHash(draw.randbytes(HASH_BYTES)))
            case Corruption.WRONG_TOKENS:
                # Nobody reads the number in a part-filled block's name, so there only what cannot be is refused.
                return replace(block, tokens=draw.choice((0, 100) if block.hash is None else (0, 1, 3, 5, 100)))
            case _:
                place = draw.randrange(len(digest))
                return replace(block, digest=digest[:place] + bytes([digest[place] ^ 0x10]) + digest[place + 1 :])


class CorruptingTransport(LoopbackTransport):
    """The exporter's transport. ``damage`` is what happens to what is sent now; None: nothing."""

    damage: Damage | None = None

    async def connect(self, address: bytes) -> Peer:  # type: ignore[override]  # a peer, be it of another kind
        """Return a peer whose messages may be damaged."""
        return CorruptingPeer(self, await super().connect(address))


class CorruptingPeer:
    """See `kv_transfer.transport.Peer`."""

    def __init__(self, transport: CorruptingTransport, peer: Peer) -> None:
        self._transport = transport
        self._peer = peer

    def send(self, buffer: Any, tag: int) -> "Future[None]":
        """Post a send."""
        damage = self._transport.damage
        return self._peer.send(buffer if damage is None else damage.on_the_wire(tag, bytes(buffer)), tag)

    def receive(self, buffer: Any, tag: int) -> "Future[None]":
        """Post a receive."""
        return self._peer.receive(buffer, tag)

    def send_lot(self, lot: Lot) -> "Future[None]":
        """Post sends."""
        damage = self._transport.damage
        if damage is None:
            return self._peer.send_lot(lot)
        tags = [lot.tag + number for number in lot.numbers]
        rows = [damage.on_the_wire(tag, bytes(lot.rows[index])) for tag, index in zip(tags, lot.indices, strict=True)]
        return self._peer.send_lot(replace(lot, rows=rows, indices=range(len(rows))))

    def receive_lot(self, lot: Lot, landed: Landed) -> "Future[None]":
        """Post receives."""
        return self._peer.receive_lot(lot, landed)

    def abort(self) -> None:
        """Cancel receives."""
        self._peer.abort()


class CorruptingStream:
    """A hand-over's stream. See `kv_transfer.import_job.HandoffChannel`."""

    def __init__(self, exporter: Exporter, damage: Damage | None) -> None:
        self._damage = damage
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._serving = asyncio.create_task(self._serve(exporter))

    async def send(self, message: ImporterMessage) -> None:
        """Send to the exporter."""
        if self._damage is not None and isinstance(message, PullBlocks):
            named = enumerate(message.positions, start=message.tag)
            self._damage.position_of.update(named)
        self._requests.put_nowait(importer_to_proto(message).SerializeToString())

    async def receive(self) -> ExporterMessage:
        """Return the exporter's next message. Raises `WorkerLost` at the end, `InvalidField` for none that can be."""
        raw = await self._answers.get()
        if raw is None:
            reason = "the stream ended"
            raise WorkerLost(reason)
        return exporter_from_proto(pb.ExporterMessage.FromString(raw))

    async def close(self) -> None:
        """End the importer's side, and wait for the other."""
        self._requests.put_nowait(None)
        await self._serving

    async def _serve(self, exporter: Exporter) -> None:
        async for message in exporter.serve(self._messages()):
            for arriving in [message] if self._damage is None else self._damage.in_words(message):
                self._answers.put_nowait(exporter_to_proto(arriving).SerializeToString())
        self._answers.put_nowait(None)

    async def _messages(self) -> AsyncIterator[ImporterMessage]:
        while (raw := await self._requests.get()) is not None:
            yield importer_from_proto(pb.ImporterMessage.FromString(raw))
