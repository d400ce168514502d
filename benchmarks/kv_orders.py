"""What the two sides of the block benchmark say to each other, and what both must know."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, get_args

from benchmarks.block_lots import LotKind
from cluster_core.identity import Attempt, BlockHash, Incarnation
from cluster_core.layout import KvLayout
from kv_transfer.settings import TransferSettings

SHARED_MEMORY, TCP = "posix,cma,self,tcp", "tcp,self"
"""``UCX_TLS`` of both sides and of the peers: what one host has, and what two hosts would have without RDMA."""
LAYOUT = KvLayout(layers=12, kv_heads=4, head_dim=64, block_size_tokens=16, dtype="bfloat16")
"""The bench model's: blocks of 192 KiB."""
HANDOVER_BLOCKS = 32
HASHES = tuple(BlockHash(position.to_bytes(16, "big")) for position in range(HANDOVER_BLOCKS))
TRIGGER_BYTES = 64
EXPORTER = Incarnation(7)
ATTEMPT = Attempt(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the receiver must know of the sender."""

    transports: dict[str, str]
    """Addresses by ``UCX_TLS``, in hexadecimal digits."""
    service: str
    """``host:port`` of the hand-over service."""
    pid: int
    pool_address: int
    port: int
    """Of the plain TCP connection, on loopback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lots:
    """Send the lots ``first`` to ``first + number - 1``, each as a message with ``tag`` plus its place comes.

    Block j of such a lot has the tag of its trigger plus 1 + j; the tags of two lots are `TAGS_A_LOT` apart. The second
    answer has the moments at which the sender began.
    """

    tls: str
    to: str
    tag: int
    kind: LotKind
    first: int
    number: int


TAGS_A_LOT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLots:
    """For each lot wait for a byte on the plain connection and tell the moment; then, unless it is read, send it."""

    kind: LotKind
    first: int
    number: int
    send: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LotStream:
    """Send as many lots as a stream has when a message with ``tag`` comes; the tags are those of `Lots`.

    The second answer is the moment at which the sender began.
    """

    to: str
    tag: int
    kind: LotKind
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RawStream:
    """On the plain connection tell of the lots of a stream when a byte comes; one byte more comes for each one read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Echoes:
    """Send ``count`` messages back, each as soon as it comes: tag ``tag`` + 2 i in, the next one out."""

    to: str
    tag: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """Digest the blocks of the lots ``first`` to ``first + number - 1``; the second answer has the seconds of each."""

    kind: LotKind
    first: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Export the pool's blocks as a finished prefill does."""

    request_id: str


Order = Lots | LotStream | RawLots | RawStream | Echoes | Digests | Offer


def order_line(order: Order) -> str:
    """Return the line that asks for ``order``."""
    return json.dumps({"do": type(order).__name__} | dataclasses.asdict(order))


def order_from(line: str) -> Order:
    """Return the order of a line."""
    fields: dict[str, Any] = json.loads(line)
    if "kind" in fields:
        fields["kind"] = LotKind(**fields["kind"])
    kinds: dict[str, type[Order]] = {kind.__name__: kind for kind in get_args(Order)}
    return kinds[fields.pop("do")](**fields)


def transfer_settings(tls: str) -> TransferSettings:
    """Return the default settings over ``tls``."""
    return TransferSettings(ucx_tls=tls)
