"""Sockets between two workers of one machine, as `kv_transfer.near_transport` uses them.

Who sends blocks connects to who receives them. A link ends when either end closes or dies: the kernel tells at once.
"""

import asyncio
import contextlib
import os
import socket
import struct
import time
from asyncio import AbstractEventLoop, Future
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from cluster_core.errors import TransferFailed, WorkerLost
from kv_transfer.lot_ledger import Tags
from kv_transfer.lots import settle
from kv_transfer.near_messages import (
    MOST_CONTENT_BYTES,
    MOST_PACKET_BYTES,
    Fate,
    answers_of,
    answers_packets,
    content_packet,
    memory_packet,
    rows_packet,
    withdrawal_packet,
)
from kv_transfer.rows import RowsAt

_TURN_S = 0.0003
"""How long packets are taken one after another before the event loop sees to others."""
_SOON_S = 0.0002
"""A packet that comes so soon after another is likely to be followed by more."""
_BACKLOG = 1024
_CREDENTIALS = struct.Struct("3i")  # process, user, group


class PacketSocket:
    """A connected socket on the event loop. Packets that do not fit now are kept and sent when they do."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        connected: socket.socket,
        heard: Callable[[memoryview], None],
        ended: Callable[[], None],
    ) -> None:
        """``heard`` gets each packet, in memory that the next one overwrites.

        ``ended`` is called once, when the other side is gone.
        """
        connected.settimeout(0)
        self._loop = loop
        self._socket = connected
        self._heard = heard
        self._ended = ended
        self._unsent: deque[bytes] = deque()
        self._room = bytearray(MOST_PACKET_BYTES)
        self._view = memoryview(self._room)
        self._last = 0.0
        self.closed = False
        loop.add_reader(connected.fileno(), self._read)

    def say(self, packet: bytes) -> None:
        """Send ``packet``, now or soon. Without effect on a socket that is closed."""
        if self.closed:
            return
        if self._unsent:
            self._unsent.append(packet)
            return
        try:
            self._socket.send(packet)
        except BlockingIOError:
            self._unsent.append(packet)
            self._loop.add_writer(self._socket.fileno(), self._write)
        except OSError:
            self._end()

    def _write(self) -> None:
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        """Take a packet; if others came just before it, look for more, for a while."""
        began = time.monotonic()
        ends = began + _TURN_S if began - self._last < _SOON_S else began
        while not self.closed:
            try:
                size = self._socket.recv_into(self._room)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._end()
                return
            self._heard(self._view[:size])
            self._last = time.monotonic()
            if self._last >= ends:
                return

    def _end(self) -> None:
        if not self.closed:
            self.close()
            self._ended()

    def close(self) -> None:
        """Close this end. Can be repeated."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()


class SendingLink:
    """The end of a worker that has blocks: its offers, until they have been fetched."""

    def __init__(self, loop: AbstractEventLoop, name: str, ended: Callable[[], None]) -> None:
        """Connect to the socket ``name``. Raises `WorkerLost` where nobody listens."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connected.settimeout(0)
            connected.connect(f"\0{name}")
        except OSError as error:
            connected.close()
            message = f"nobody listens at {name}: {error}"
            raise WorkerLost(message) from error
        self._loop = loop
        self._after = ended
        self._described = {b""}
        self._offers: dict[int, tuple[Future[None], Any, Any]] = {}
        self._last = 0
        self._packets = PacketSocket(loop, connected, self._hear, self._lost)

    def offer(self, owner: Any, matrix: Any, rows: RowsAt, tags: Tags, description: bytes) -> "Future[None]":
        """Offer ``rows`` of ``matrix``; the future is done when they have been fetched, or were taken back.

        ``description`` is that of their memory. Where nothing need be said of it, small rows travel in the packet.
        """
        done: Future[None] = self._loop.create_future()
        self._last = (self._last + 1) & 0xFFFFFFFF
        if not description and rows.row_bytes * tags.count <= MOST_CONTENT_BYTES:
            self._packets.say(content_packet(self._last, tags, matrix, rows.indices))
            settle(done, WorkerLost("the receiver is gone") if self._packets.closed else None)
        else:
            self._offers[self._last] = done, owner, matrix
            if description not in self._described:
                self._described.add(description)
                self._packets.say(memory_packet(description))
            self._packets.say(rows_packet(self._last, tags, rows))
            if self._packets.closed:  # since before this offer, perhaps: a large lot has several
                self.fail(WorkerLost("the receiver is gone"))
        return done

    def withdraw(self, owner: Any) -> None:
        """Take back what of ``owner``'s offers nobody awaits."""
        for number, (_done, whose, _matrix) in list(self._offers.items()):  # saying so may end the link
            if whose is owner:
                self._packets.say(withdrawal_packet(number))

    def _hear(self, packet: memoryview) -> None:
        for fate, number in answers_of(packet):
            done, _owner, _matrix = self._offers.pop(number)
            match fate:
                case Fate.FETCHED:
                    settle(done, None)
                case Fate.WITHDRAWN:
                    settle(done, TransferFailed("it was taken back before anybody awaited it"))
                case _:
                    settle(done, TransferFailed("the receiver cannot read this process's memory"))

    def _lost(self) -> None:
        self._after()
        self.fail(WorkerLost("the receiver is gone"))

    def fail(self, error: WorkerLost) -> None:
        """Close the link; whatever was not fetched ends with ``error``."""
        self._packets.close()
        for done, _owner, _matrix in self._offers.values():
            settle(done, error)
        self._offers.clear()


class ReceivingLink:
    """The end of a worker that wants blocks: the sender's packets, and ``reader``, which reads its memory."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        connected: socket.socket,
        reader_of: Callable[[int], Any],
        heard: "Callable[[ReceivingLink, memoryview], None]",
        ended: "Callable[[ReceivingLink], None]",
    ) -> None:
        """Raise `OSError` when the sender is another user's process, or dead."""
        pid, user, _group = _CREDENTIALS.unpack(
            connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if user != os.getuid():
            message = f"process {pid} is another user's"
            raise PermissionError(message)
        self.reader = reader_of(pid)
        self.alive = True
        self._loop = loop
        self._ended = ended
        self._answers: list[tuple[Fate, int]] = []
        self._packets = PacketSocket(loop, connected, partial(heard, self), self._end)

    def answer(self, fate: Fate, number: int) -> None:
        """Tell the sender what became of an offer: soon, after those who wait for its bytes, and together with others.

        To wake the sender takes time, and it may take this core.
        """
        if not self._answers:
            self._loop.call_soon(self._say_answers)
        self._answers.append((fate, number))

    def _say_answers(self) -> None:
        answers, self._answers = self._answers, []
        for packet in answers_packets(answers):
            self._packets.say(packet)

    def _end(self) -> None:
        self._ended(self)
        self.close()

    def close(self) -> None:
        """Close the link. Can be repeated."""
        if self.alive:
            self.alive = False
            self._say_answers()
            self._packets.close()
            self.reader.close()


class Doorway:
    """The socket that senders connect to."""

    def __init__(self, name: str, came: Callable[[socket.socket], None]) -> None:
        """Listen at ``name``. Raises `OSError` where such sockets cannot be made."""
        self._loop = asyncio.get_running_loop()
        self._came = came
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(0)
        try:
            self._listener.bind(f"\0{name}")
            self._listener.listen(_BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connected, _address = self._listener.accept()
            try:
                self._came(connected)
            except OSError:
                connected.close()

    def close(self) -> None:
        """Let nobody in any more."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
