"""How fast lots of KV blocks move between two processes on one GPU, and what their digests cost there.

``baton bench kv --device cuda``, or ``python -m benchmarks.kv_cuda`` where there is no gRPC. This process receives, as
a decode worker does, and `benchmarks.kv_cuda_side` has the blocks. Against Baton's transport, which copies a lot by one
launch, stand what the GPU does in one process (torch's `copy_` of as many adjacent blocks, and its gathering of
scattered ones into one piece), and UCX alone, which makes a copy by CUDA IPC for each block. Digests are those of
`kv_transfer.digest`, by each side in its process, as a share of the time that moving the same lot takes, and as a rate
against adding up as many bytes.

With ``--device cpu`` the same program runs over host memory: it shows that the program works.
"""

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks import report
from benchmarks.block_lots import KIB, MIB, POOL_BYTES, QUICK_POOL_BYTES, LotKind, Places, places
from benchmarks.cuda_device import require_device
from benchmarks.device_pool import LotDigests, PlainCopies, device_pool
from benchmarks.kv_cuda_side import BATON, UCX, started_transports
from benchmarks.kv_orders import Digests
from benchmarks.lot_sides import LotReceiver, gb_s
from benchmarks.peer_process import running
from benchmarks.rounds import Measurement, against, in_turn

SIZES = {"64KiB": 64 * KIB, "192KiB": 192 * KIB, "1MiB": MIB, "4MiB": 4 * MIB}
COUNTS = (1, 32, 512)
KINDS = {
    f"{name}.{count}.{'scattered' if scattered else 'contiguous'}": LotKind(size=size, count=count, scattered=scattered)
    for name, size in SIZES.items()
    for count in COUNTS
    for scattered in (False, True)
}
CUDA_POOL_BYTES = 3072 * MIB
CONTIGUOUS_AIM, SCATTERED_AIM = 0.9, 0.8
DIGEST_AIM = 0.05
"""Of the time that the move takes, at most."""
CASES = tuple(
    f"kv.cuda.{kind}.{what}"
    for kind in KINDS
    for what in ("copy", "ucx", "digest.exporter", "digest.importer", "digest.read")
)


class DeviceReceiver:
    """Measures lots, in GB/s."""

    def __init__(self, lots: LotReceiver, pool_bytes: int, device: str) -> None:
        self._lots = lots
        self._pool_bytes = pool_bytes
        self._copies = PlainCopies(device_pool(pool_bytes, device), device_pool(pool_bytes, device))
        self._digests = LotDigests(device_pool(pool_bytes, device))

    async def moved(self, kind: LotKind, transport: str) -> float:
        """Return what a transport moves."""
        return await self._lots.gb_s(kind, transport)

    async def copied(self, kind: LotKind) -> float:
        """Return what a plain copy on the device moves."""
        kind, lists = self._next(kind)
        return gb_s(kind, [self._copies.seconds(kind, *each) for each in lists])

    async def read(self, kind: LotKind) -> float:
        """Return what adding up reads."""
        kind, lists = self._next(kind)
        return gb_s(kind, [self._copies.read_seconds(kind, sources) for sources, _ in lists])

    async def exporter_digests(self, kind: LotKind) -> float:
        """Return what the sender digests."""
        kind, numbers = self._lots.next_lots(kind)
        await self._lots.order(Digests(kind=kind, first=numbers.start, number=len(numbers)))
        return gb_s(kind, json.loads(await self._lots.hear()))

    async def importer_digests(self, kind: LotKind) -> float:
        """Return what this side digests."""
        kind, lists = self._next(kind)
        return gb_s(kind, [self._digests.seconds(kind, targets.tolist()) for _, targets in lists])

    def _next(self, kind: LotKind) -> tuple[LotKind, list[tuple[Places, Places]]]:
        kind, numbers = self._lots.next_lots(kind)
        return kind, [places(kind, number, self._pool_bytes) for number in numbers]


@asynccontextmanager
async def both_sides(device: str, pool_bytes: int) -> AsyncIterator[DeviceReceiver]:
    """Start the sender and this side; end both with the block."""
    async with AsyncExitStack() as exits:
        sender = exits.enter_context(running("benchmarks.kv_cuda_side", device, str(pool_bytes)))
        transports = await started_transports(device)
        for transport in transports.values():
            exits.push_async_callback(transport.close)
        pool, addresses = device_pool(pool_bytes, device), json.loads(await asyncio.to_thread(sender.hear))
        yield DeviceReceiver(LotReceiver(pool, sender, addresses, transports), pool_bytes, device)


async def _rows(receiver: DeviceReceiver, rounds: int, name: str, kind: LotKind) -> list[report.Row]:
    """Return the rows of one kind of lots."""
    measurements: dict[str, Measurement] = {
        "ours": lambda: receiver.moved(kind, BATON),
        "ucx": lambda: receiver.moved(kind, UCX),
        "copy": lambda: receiver.copied(kind),
        "exporter": lambda: receiver.exporter_digests(kind),
        "importer": lambda: receiver.importer_digests(kind),
        "read": lambda: receiver.read(kind),
    }
    figures = await in_turn(f"{name} blocks", rounds, measurements)
    ours, case = figures["ours"], f"kv.cuda.{name}"
    plain = "torch, gathered on the device" if kind.scattered else "torch's copy_ on the device"
    aim = SCATTERED_AIM if kind.scattered else CONTIGUOUS_AIM
    rows = [against(f"{case}.copy", ours, plain, figures["copy"]).aiming_at(aim)]
    rows.append(against(f"{case}.ucx", ours, "UCX alone, a message a block", figures["ucx"]))
    for side in ("exporter", "importer"):
        share = statistics.median(ours) / statistics.median(figures[side])
        row = report.lower_is_better(f"{case}.digest.{side}", share, "of the move", "the aim", DIGEST_AIM)
        rows.append(row.aiming_at(1.0))
    return [*rows, against(f"{case}.digest.read", figures["importer"], "torch's sum", figures["read"])]


async def measure(
    device: str, *, quick: bool, pool_bytes: int = 0, kinds: Mapping[str, LotKind] = KINDS
) -> list[report.Row]:
    """Return five rows for each of ``kinds``; without ``pool_bytes`` the pools are of the usual size."""
    usual = CUDA_POOL_BYTES if device == "cuda" else QUICK_POOL_BYTES if quick else POOL_BYTES
    rows = []
    async with both_sides(device, pool_bytes or usual) as receiver:
        for name, kind in kinds.items():
            rows += await _rows(receiver, 1 if quick else 7, name, kind)
    return rows


def main() -> None:
    """Measure and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="cpu: shows that the program works")
    options = parser.parse_args()
    if options.device == "cuda":
        require_device()
    report.show(asyncio.run(measure(options.device, quick=options.quick)), as_json=options.json)


if __name__ == "__main__":
    main()
