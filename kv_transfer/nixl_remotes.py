"""The other workers that a NIXL agent knows, and what it is asked to do with them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster_core.errors import WorkerLost
from kv_transfer.nixl_memory import Registrar, Span
from kv_transfer.nixl_messages import Advert, Message, Space, encode, unpack_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What to fetch from one remote in one go: rows of address and bytes, here and there, of the same lengths."""

    here: NDArray[np.uint64]
    here_space: Space
    there: NDArray[np.uint64]
    there_space: Space


class ReadAgent(Registrar, Protocol):
    """NIXL, or a test's stand-in. Everything happens in its calls; none of them waits."""

    def add_remote(self, metadata: bytes) -> str:
        """Take in what a remote says of its connection and regions; returns its name. Raises `WorkerLost`."""
        ...

    def drop_remote(self, name: str) -> None:
        """Close the connection to ``name`` by force and forget its regions. Without effect when it is not known."""
        ...

    def metadata_of(self, regions: Sequence[Span]) -> bytes:
        """Return what remotes need in order to reach this agent and to read ``regions``, all of one kind of memory."""
        ...

    def close(self) -> None:
        """End everything: nothing is read or written any more."""
        ...

    def notify(self, name: str, data: bytes) -> None:
        """Send a notification. Raises `WorkerLost` when the connection is known to be broken."""
        ...

    def notifications(self) -> list[tuple[str, bytes]]:
        """Return what remotes have said, and by whom, after everything that NIXL can do now was done."""
        ...

    def start_read(self, name: str, read: Read) -> Any:
        """Start ``read`` and return its handle. Raises `TransferFailed`; some bytes may be on their way even so."""
        ...

    def is_read(self, handle: Any) -> bool:
        """Whether a read is done, and its handle gone. Raises `TransferFailed` when it failed; that ends it too."""
        ...


@dataclass(slots=True)
class Remote:
    """One life of another worker."""

    name: str
    regions: dict[bool, int] = field(default_factory=dict)
    """How many of its regions are known here, of its host's (False) and of its devices' memory (True)."""
    reads: int = 0
    """How many reads from it are running."""
    lost: bool = False


class Remotes:
    """The remotes of one agent. A remote that was lost is made anew when it is spoken to, or heard of, again."""

    def __init__(self, agent: ReadAgent) -> None:
        self._agent = agent
        self._live: dict[str, Remote] = {}
        self._dying: set[str] = set()
        """Lost, but reads from them have not ended: the connection must be closed before another one is made."""

    def reach(self, address: bytes) -> Remote:
        """Return the remote at ``address``. Raises `WorkerLost` when there is no way to it."""
        name, metadata = unpack_address(address)
        return self._live.get(name) or self._add(name, metadata)

    def heard(self, name: str, advert: Advert) -> Remote:
        """Return the remote ``name`` that said ``advert``, whose regions are known then. Raises `WorkerLost`."""
        remote, kind = self._live.get(name), advert.space.on_device
        if remote is None:
            remote = self._add(name, advert.metadata)
        elif remote.regions.get(kind, 0) < advert.regions:
            self._agent.add_remote(advert.metadata)
        remote.regions[kind] = max(remote.regions.get(kind, 0), advert.regions)
        return remote

    def _add(self, name: str, metadata: bytes) -> Remote:
        if name in self._dying:
            message = "nixl: the connection to the other worker is being closed"
            raise WorkerLost(message)
        told = self._agent.add_remote(metadata)
        if told != name:
            self._agent.drop_remote(told)
            message = f"nixl: {name} says that it is {told}"
            raise WorkerLost(message)
        remote = self._live[name] = Remote(name)
        return remote

    def say(self, remote: Remote, message: Message) -> None:
        """Send ``message``. Raises `WorkerLost`, and the remote is lost then."""
        try:
            self._agent.notify(remote.name, encode(message))
        except WorkerLost:
            self.lose(remote)
            raise

    def lose(self, remote: Remote) -> None:
        """Note that ``remote`` is gone. Its connection is closed when the last read from it has ended."""
        if remote.lost:
            return
        remote.lost = True
        del self._live[remote.name]
        self._dying.add(remote.name)
        self._bury(remote)

    def begin_read(self, remote: Remote) -> None:
        """Note that one more read from ``remote`` is running."""
        remote.reads += 1

    def end_read(self, remote: Remote) -> None:
        """Note that a read from ``remote`` has ended."""
        remote.reads -= 1
        self._bury(remote)

    def _bury(self, remote: Remote) -> None:
        if remote.lost and not remote.reads:
            self._dying.discard(remote.name)
            self._agent.drop_remote(remote.name)
