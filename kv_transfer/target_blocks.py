"""The blocks that one import writes into, and who may: see "life of a target block" in `kv_transfer.importer`."""

from asyncio import Future
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from cluster_core.failpoints import corrupts
from cluster_core.holds import WriterHold
from cluster_core.identity import BlockHash
from kv_transfer.digest import BlockDigests
from kv_transfer.lots import Lot
from kv_transfer.memory import BlockHolds, BlockMemory
from kv_transfer.session import PostReceives
from kv_transfer.transport import Peer
from kv_transfer.wire import Wire


class LandingListener(Protocol):
    """Hears what becomes of the blocks of an import."""

    def landed(self, position: int, digest: bytes) -> None:
        """Take that a block's bytes are here, with their digest."""
        ...

    def failed(self, positions: Sequence[int], error: BaseException) -> None:
        """Take that blocks will not come."""
        ...


class TargetBlocks:
    """The own blocks ``targets``, one for each position of a prompt whose full blocks have ``hashes``."""

    def __init__(
        self,
        memory: BlockMemory,
        digests: BlockDigests,
        holds: BlockHolds,
        targets: Sequence[int],
        hashes: Sequence[BlockHash],
        listener: LandingListener,
    ) -> None:
        self.listener: LandingListener | None = listener
        """None: what still lands is of no interest."""
        self.wire: Wire | None = None
        """How blocks come packed; None: they come as they are, into their places."""
        self._memory = memory
        self._digests = digests
        self._holds = holds
        self._targets = targets
        self._hashes = hashes
        self._receives: dict[Future[None], dict[int, int]] = {}
        """For each lot the positions that have not landed, by their place in it."""

    def post(self, peer: Peer, action: PostReceives) -> Future[None]:
        """Post the receives of a pull as one lot; each target has a writer's hold until no byte can land in it.

        Returns the lot's future.
        """
        hold, indices = WriterHold(action.tag), [self._targets[position] for position in action.positions]
        places = range(len(indices))
        awaited = dict(zip(places, action.positions, strict=True))
        for index in indices:
            self._holds.acquire(index, hold)
        lot, landed = self._lot(indices, action.tag), partial(self._landed, awaited, hold)
        staged = None if self.wire is None else lot.rows
        try:
            receive = peer.receive_lot(lot, partial(landed, staged))
        except BaseException:
            self._release(awaited.values(), hold)
            raise
        if self.wire is not None:
            receive.add_done_callback(partial(_give_back, self.wire, staged))
        self._receives[receive] = awaited
        receive.add_done_callback(partial(self._settled, awaited, hold))
        return receive

    def _lot(self, indices: Sequence[int], tag: int) -> Lot:
        places = range(len(indices))
        if self.wire is None:
            return Lot(rows=self._memory.rows, indices=indices, tag=tag, numbers=places)
        return Lot(rows=self.wire.take_rows(len(indices)), indices=places, tag=tag, numbers=places)

    @property
    def travelling_bytes(self) -> int:
        """Bytes of one block on its way."""
        return self._memory.block_bytes if self.wire is None else self.wire.packed_bytes

    def exact(self, positions: frozenset[int]) -> frozenset[int]:
        """Return those of ``positions``, which have landed, whose blocks are what was sealed, bit by bit."""
        return positions if self.wire is None else frozenset()

    def pending(self) -> Mapping[Future[None], Mapping[int, int]]:
        """Return the lots of which blocks have not landed; what is awaited of each, which shrinks, by its place."""
        return {receive: awaited for receive, awaited in self._receives.items() if awaited}

    def _release(self, positions: Iterable[int], hold: WriterHold) -> None:
        for position in positions:
            self._holds.release_block(self._targets[position], hold)

    def _landed(self, awaited: dict[int, int], hold: WriterHold, staged: Any, places: Sequence[int]) -> None:
        positions = [awaited.pop(place) for place in places]
        if staged is not None:
            self._unpack(positions, hold, [staged[place] for place in places])
            return
        self._release(positions, hold)
        if self.listener is None:
            return
        indices = [self._targets[position] for position in positions]
        for index in indices:
            if corrupts("xfer.verify"):
                buffer = self._memory.buffer(index)
                buffer[0] ^= 1
                int(buffer[0])  # a GPU has written it when it can be read
        hashes = [self._hashes[position] if position < len(self._hashes) else None for position in positions]
        for position, digest in zip(positions, self._digests.of(indices, positions, hashes), strict=True):
            self.listener.landed(position, digest)

    def _unpack(self, positions: Sequence[int], hold: WriterHold, rows: Sequence[Any]) -> None:
        """Fill targets from packed blocks; a target is its own again when it was filled, or will not be."""
        for position, row in zip(positions, rows, strict=True):
            if self.listener is not None:
                assert self.wire is not None, "packed blocks come by a wire format"
                if corrupts("xfer.verify"):
                    row[0] ^= 1
                self.listener.landed(position, self.wire.unpack(row, self._targets[position]))
        self._release(positions, hold)

    def _settled(self, awaited: dict[int, int], hold: WriterHold, receive: Future[None]) -> None:
        """Take that no byte of a lot can land any more."""
        error = receive.exception()
        self._receives.pop(receive, None)
        self._release(awaited.values(), hold)
        if error is not None and self.listener is not None:
            self.listener.failed(sorted(awaited.values()), error)
        awaited.clear()


def _give_back(wire: Wire, staged: Any, _receive: Future[None]) -> None:
    wire.give_back(staged)
