"""The two ends that the transport contract is tried on: one here, and a sender here or in another process."""

import asyncio
import subprocess
import sys
from asyncio import Future
from collections.abc import Sequence
from typing import Protocol

from kv_transfer.device_transport import make_device_transport
from kv_transfer.host_transport import make_host_transport
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.lots import Lot
from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Transport, make_transport
from kv_transfer.ucx_transport import UcxTransport
from tests.kv_transfer.patterns import pattern, pattern_rows
from tests.kv_transfer.pretended_device import PretendedMemory

NOTICE_S = 1.0
TIMEOUT_S = 20.0
SETTINGS = TransferSettings(ucx_keepalive_s=0.2)
KINDS: tuple[str, ...] = (
    "loopback",
    "host in one process",
    "host in two processes",
    "device in one process",
    "device in two processes",
    "ucx in one process",
    "ucx in two processes",
    "either in two processes",
)
"""The first word names the transport: see `new_transport`."""
NIXL_KINDS = ("nixl in one process", "nixl in two processes")
"""Tried in a process without ucxx: see nixl_contract.py."""


def new_transport(name: str, network: LoopbackNetwork) -> Transport:
    match name:
        case "loopback":
            return LoopbackTransport(network)
        case "host":
            return make_host_transport()
        case "device":
            return make_device_transport(PretendedMemory())
        case "ucx":
            return UcxTransport(SETTINGS)
        case "nixl":
            return NixlTransport(SETTINGS)
        case _:
            return make_transport(SETTINGS)


def transport_of(kind: str) -> str:
    return kind.split(maxsplit=1)[0]


def has_own_process(kind: str) -> bool:
    return kind.endswith("in two processes")


class Sender(Protocol):
    """The other worker."""

    address: bytes

    async def send(self, to: bytes, tag: int, size: int) -> None: ...
    async def send_lot(self, to: bytes, tag: int, size: int, numbers: Sequence[int]) -> None:
        """Send the rows of `pattern_rows`; number n lies at row n."""

    async def die(self) -> None: ...


class SenderHere:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.address = transport.address
        self._sends: list[Future[None]] = []

    async def send(self, to: bytes, tag: int, size: int) -> None:
        peer = await self._transport.connect(to)
        self._sends.append(peer.send(pattern(tag, size), tag))

    async def send_lot(self, to: bytes, tag: int, size: int, numbers: Sequence[int]) -> None:
        rows = pattern_rows(tag, size, max(numbers) + 1)
        peer = await self._transport.connect(to)
        self._sends.append(peer.send_lot(Lot(rows=rows, indices=numbers, tag=tag, numbers=numbers)))

    async def die(self) -> None:
        await self._transport.close()
        await asyncio.gather(*self._sends, return_exceptions=True)


class SenderProcess:
    def __init__(self, transport: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kv_transfer.sender_process", transport],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = bytes.fromhex(self._process.stdout.readline())

    async def send(self, to: bytes, tag: int, size: int) -> None:
        self._say(f"{to.hex()} {tag} {size}")

    async def send_lot(self, to: bytes, tag: int, size: int, numbers: Sequence[int]) -> None:
        self._say(f"{to.hex()} {tag} {size} {','.join(map(str, numbers))}")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    async def die(self) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


async def outcomes(receives: list[Future[None]]) -> list[BaseException | None]:
    """Wait for ``receives``; return how each ended."""
    done, pending = await asyncio.wait(receives, timeout=TIMEOUT_S)
    assert not pending
    assert len(done) == len(receives)
    return [receive.exception() for receive in receives]
