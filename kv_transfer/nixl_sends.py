"""The sender's side over NIXL: it says what lies ready where, and waits until the receiver has read it."""

import asyncio
from asyncio import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster_core.errors import WorkerLost
from kv_transfer.lots import settle
from kv_transfer.nixl_memory import Regions, Slab, Span
from kv_transfer.nixl_messages import Advert, Nudge
from kv_transfer.nixl_remotes import ReadAgent, Remote, Remotes


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What is sent in one call."""

    entries: NDArray[np.uint64]
    """A row for each message: tag, address, bytes."""
    span: Span
    """All of these addresses; registered unless there are no bytes."""
    keeps: Any
    """What must not be freed before the parcel was read."""
    slab: Slab | None = None
    """Where the bytes were copied to, when they did not lie in a region."""


@dataclass(slots=True)
class _Sending:
    done: "Future[None]"
    remote: Remote
    parcel: Parcel
    left: int


class NixlSends:
    """Every send that was not read yet."""

    def __init__(self, agent: ReadAgent, regions: Regions, remotes: Remotes) -> None:
        self._agent = agent
        self._regions = regions
        self._remotes = remotes
        self._by_tag: dict[int, _Sending] = {}
        self._metadata: dict[tuple[Span, ...], bytes] = {}

    def __len__(self) -> int:
        """Return how many messages lie ready."""
        return len(self._by_tag)

    def send(self, address: bytes, parcel: Parcel) -> "Future[None]":
        """Offer ``parcel`` to the worker at ``address``; done when all of it was read. Raises `WorkerLost`."""
        remote = self._remotes.reach(address)
        regions = self._regions.publish(parcel.span)
        if regions not in self._metadata:
            self._metadata[regions] = self._agent.metadata_of(regions)
        advert = Advert(
            space=parcel.span.space,
            regions=len(regions),
            entries=parcel.entries,
            metadata=self._metadata[regions],
        )
        self._remotes.say(remote, advert)
        sending = _Sending(asyncio.get_running_loop().create_future(), remote, parcel, len(parcel.entries))
        self._by_tag.update(dict.fromkeys(parcel.entries[:, 0].tolist(), sending))
        if not sending.left:
            sending.done.set_result(None)
        return sending.done

    def taken(self, remote: str, tags: NDArray[np.uint64]) -> None:
        """Note that ``remote`` will not read ``tags`` any more."""
        for tag in tags.tolist():
            sending = self._by_tag.get(tag)
            if sending is None or sending.remote.name != remote:
                continue
            del self._by_tag[tag]
            sending.left -= 1
            if not sending.left:
                self._finish(sending, None)

    def probe(self) -> None:
        """Find out which receivers are gone, and fail what they have not read."""
        for remote in {id(sending.remote): sending.remote for sending in self._by_tag.values()}.values():
            try:
                if not remote.lost:
                    self._remotes.say(remote, Nudge())
            except WorkerLost as error:
                self.fail(remote, error)
            else:
                if remote.lost:
                    self.fail(remote, WorkerLost("nixl: the other worker is gone"))

    def fail(self, remote: Remote | None, error: WorkerLost) -> None:
        """Fail what ``remote`` (None: anybody) has not read."""
        failed = {tag: one for tag, one in self._by_tag.items() if remote is None or one.remote is remote}
        for tag in failed:
            del self._by_tag[tag]
        for sending in {id(one): one for one in failed.values()}.values():
            self._finish(sending, error)

    def _finish(self, sending: _Sending, error: WorkerLost | None) -> None:
        if sending.parcel.slab is not None and error is None:
            self._regions.give_back(sending.parcel.slab)  # who was lost might still read it: then it is not used again
        settle(sending.done, error)
