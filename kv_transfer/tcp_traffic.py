"""Asks the kernel what has come to this process by TCP, for transports that do not tell what carries their messages."""

import math
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

from cluster_core.links import ProbeBurst

_OPEN_FILES = Path("/proc/self/fd")
_INFO_BYTES = 136
_RECEIVED = struct.Struct("<128xQ")
"""``tcpi_bytes_received`` of ``struct tcp_info``, since Linux 4.1."""


def received_bytes() -> int:
    """Return the bytes that the TCP connections which are open now have received; 0 where the kernel does not tell."""
    return sum(_received())


def _received() -> Iterator[int]:
    for file in list(_OPEN_FILES.iterdir()) if _OPEN_FILES.is_dir() else ():
        with suppress(OSError):  # closed meanwhile, or a socket of another kind
            if not str(file.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as connection:
                if connection.family in {socket.AF_INET, socket.AF_INET6} and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
                    yield _RECEIVED.unpack(info)[0] if len(info) == _INFO_BYTES else 0


class TcpWatch:
    """Moves bursts towards this process by ``come``, and looks what part of each has come by TCP.

    TCP brings all of a burst, or something else does. Other traffic of the process may come beside one, so the burst
    with the least counts.
    """

    def __init__(self, come: Callable[[ProbeBurst], Awaitable[float]]) -> None:
        self._come = come
        self._least_share = math.inf

    async def come(self, burst: ProbeBurst) -> float:
        """Do as the ``come`` that is watched."""
        before = received_bytes()
        seconds = await self._come(burst)
        share = (received_bytes() - before) / (burst.count * burst.message_bytes)
        self._least_share = min(self._least_share, share)
        return seconds

    @property
    def by_tcp(self) -> bool | None:
        """Whether TCP has brought the bursts; None where that cannot be told: no connection has ever brought anything.

        A worker has connections, those of its gRPC server, so there the kernel does not tell.
        """
        return self._least_share >= 1 if received_bytes() else None
