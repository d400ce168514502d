"""NIXL's part played in one process: agents that read one another's memory, when the test lets them."""

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.nixl_memory import Regions, Span
from kv_transfer.nixl_messages import Advert, Message, Taken, decode, pack_address
from kv_transfer.nixl_receives import NixlReceives
from kv_transfer.nixl_remotes import Read, Remotes
from kv_transfer.nixl_sends import NixlSends

_names = itertools.count(1)


class FakeAgent:
    """See `kv_transfer.nixl_remotes.ReadAgent`."""

    def __init__(self, network: "dict[str, FakeAgent]") -> None:
        self.name = f"{next(_names):016d}"
        self.network = network
        self.network[self.name] = self
        self.registered: list[Span] = []
        self.remotes: set[str] = set()
        self.dropped: list[str] = []
        self.inbox: list[tuple[str, bytes]] = []
        self.reads: list[Read] = []
        self.held = False
        """Reads do not finish."""
        self.failing = False

    def register(self, span: Span) -> None:
        self.registered.append(span)

    def add_remote(self, metadata: bytes) -> str:
        name = metadata[:16].decode()
        if name not in self.network:
            reason = "no such agent"
            raise WorkerLost(reason)
        self.remotes.add(name)
        return name

    def drop_remote(self, name: str) -> None:
        self.remotes.discard(name)
        self.dropped.append(name)

    def metadata_of(self, regions: Sequence[Span]) -> bytes:
        return self.name.encode() + bytes(len(regions))

    def notify(self, name: str, data: bytes) -> None:
        if name not in self.remotes or name not in self.network:
            reason = "nobody there"
            raise WorkerLost(reason)
        self.network[name].inbox.append((self.name, data))

    def notifications(self) -> list[tuple[str, bytes]]:
        said, self.inbox = self.inbox, []
        return said

    def start_read(self, name: str, read: Read) -> Read:
        assert name in self.remotes
        self.reads.append(read)
        return read

    def is_read(self, handle: Read) -> bool:
        if self.failing:
            reason = "the sender died"
            raise TransferFailed(reason)
        if self.held:
            return False
        for (here, size), (there, same) in zip(handle.here.tolist(), handle.there.tolist(), strict=True):
            assert size == same
            ctypes.memmove(here, there, size)
        return True

    def close(self) -> None:
        self.network.pop(self.name, None)


class Side:
    """One worker over a fake agent; ``turn`` is what `NixlWorker` does."""

    def __init__(self, network: dict[str, FakeAgent], clock: "Clock") -> None:
        self.agent = FakeAgent(network)
        self.clock = clock
        self.regions = Regions(self.agent)
        remotes = Remotes(self.agent)
        self.sends = NixlSends(self.agent, self.regions, remotes)
        self.receives = NixlReceives(self.agent, remotes, clock)
        self.address = pack_address(self.agent.name, self.agent.metadata_of(()))
        self.heard: list[Message] = []

    def turn(self) -> None:
        for name, data in self.agent.notifications():
            self.heard.append(message := decode(data))
            match message:
                case Advert():
                    self.receives.hear(name, message)
                case Taken(tags=tags):
                    self.sends.taken(name, tags)
        self.receives.turn(self.clock() + 1.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entries_of(rows: "np.typing.NDArray[np.uint8]", indices: Sequence[int], tag: int) -> "np.typing.NDArray[np.uint64]":
    """Return the advert's entries of rows under the tags from ``tag`` on."""
    size = rows.shape[1]
    base = rows.ctypes.data
    return np.array([(tag + place, base + index * size, size) for place, index in enumerate(indices)], np.uint64)
