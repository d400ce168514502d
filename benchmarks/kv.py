"""How fast lots of KV blocks move between two processes of one machine, against its limits and against others.

This process receives, as a decode worker does; `benchmarks.kv_sides` has the blocks. Everybody moves the same lists of
blocks (`benchmarks.block_lots`) in turn: Baton's transport by its public contract, one thread of memcpy, the kernel's
`process_vm_readv` (what UCX's CMA does, and so the transport's own limit on one host), plain TCP sockets against
Baton's transport over TCP, and NIXL by its own API in processes of its own. `ucx_perftest`, UCX's own program, cannot
be given lists: it sends one buffer again and again, which the caches hold.

Small lots are moved a second time with several under way (`benchmarks.lot_streams`).

With ``--device cuda`` see `benchmarks.kv_cuda`.
"""

import asyncio
import contextlib
import statistics

from benchmarks import kv_cuda, report, ucx_perftest
from benchmarks.block_lots import IN_FLIGHT, KINDS, POOL_BYTES, QUICK_POOL_BYTES, SIZES, SMALL_KINDS, LotKind, kind_name
from benchmarks.cuda_device import require_device
from benchmarks.kv_orders import HANDOVER_BLOCKS, LAYOUT, SHARED_MEMORY, TCP, TRIGGER_BYTES
from benchmarks.kv_receiver import Handovers, Receiver, both_sides
from benchmarks.nixl_sides import OPERATIONS, NixlPair, installed, nixl_pair
from benchmarks.rounds import Measurement, against, in_turn

TCP_SIZES = DIGEST_SIZES = ("64KiB", "192KiB", "1MiB")
MANY = 2000
PEER_IN_FLIGHT = 64
"""Messages that `ucx_perftest` has on their way at once."""
SMALL_BYTES = 64 * 1024
LIMIT_AIM, SMALL_LIMIT_AIM = 0.85, 0.6
"""Of the transport's own limit, for blocks of 64 KiB and more, and for smaller ones."""
COPY_AIM_SIZE, COPY_AIM = "1MiB", 0.6
NIXL_AIM = 1.0
HANDOVER_KIND = LotKind(size=LAYOUT.block_bytes, count=HANDOVER_BLOCKS, scattered=True)
CASES = (
    *(f"kv.{name}.{against}" for name in KINDS for against in ("memcpy", "cma", "nixl")),
    *(f"kv.{name}.ucx_perftest" for name in SIZES),
    *(
        f"kv.tcp.{kind_name(name, MANY, scattered=False)}.{against}"
        for name in TCP_SIZES
        for against in ("sockets", "ucx_perftest")
    ),
    *(f"kv.in_flight.{name}.{against}" for name in SMALL_KINDS for against in ("cma", "nixl")),
    *(f"kv.digest.{kind_name(name, HANDOVER_BLOCKS, scattered=True)}" for name in DIGEST_SIZES),
    "kv.round_trip.sleeping",
    "kv.round_trip.polling",
    "kv.handover.32x192KiB",
)


async def _lot_rows(receiver: Receiver, nixl: NixlPair | None, rounds: int, name: str) -> list[report.Row]:
    """Return the rows of one kind of lots."""
    kind = KINDS[name]
    measurements: dict[str, Measurement] = {
        "ours": lambda: receiver.ours_gb_s(kind, SHARED_MEMORY),
        "memcpy": lambda: receiver.memcpy_gb_s(kind),
        "cma": lambda: receiver.cma_gb_s(kind),
    }
    if nixl is not None:
        measurements |= {
            operation: lambda operation=operation: nixl.gb_s(kind, operation)  # type: ignore[misc]  # mypy loses it
            for operation in OPERATIONS
        }
    figures = await in_turn(f"{name} blocks", rounds, measurements)
    ours = figures["ours"]
    memcpy = against(f"kv.{name}.memcpy", ours, "memcpy, one thread", figures["memcpy"])
    return [
        memcpy.aiming_at(COPY_AIM) if kind.size == SIZES[COPY_AIM_SIZE] else memcpy,
        _cma_row(f"kv.{name}", kind, figures),
        _nixl_row(f"kv.{name}", figures),
    ]


async def _stream_rows(receiver: Receiver, nixl: NixlPair | None, rounds: int, name: str) -> list[report.Row]:
    """Return the rows of one kind of small lots, of which several are under way."""
    kind = KINDS[name]
    measurements: dict[str, Measurement] = {
        "ours": lambda: receiver.ours_streaming_gb_s(kind),
        "cma": lambda: receiver.cma_streaming_gb_s(kind),
    }
    if nixl is not None:
        measurements |= {
            operation: lambda operation=operation: nixl.gb_s(kind, operation, streaming=True)  # type: ignore[misc]  # as above
            for operation in OPERATIONS
        }
    figures = await in_turn(f"{name} blocks, {IN_FLIGHT} lots in flight", rounds, measurements)
    case = f"kv.in_flight.{name}"
    return [_cma_row(case, kind, figures), _nixl_row(case, figures)]


def _cma_row(case: str, kind: LotKind, figures: dict[str, list[float]]) -> report.Row:
    row = against(f"{case}.cma", figures["ours"], "process_vm_readv", figures["cma"])
    return row.aiming_at(LIMIT_AIM if kind.size >= SMALL_BYTES else SMALL_LIMIT_AIM)


def _nixl_row(case: str, figures: dict[str, list[float]]) -> report.Row:
    """Return the row against the better of NIXL's operations, if NIXL is here."""
    ours = figures["ours"]
    if not figures.keys() >= set(OPERATIONS):
        return report.not_here(f"{case}.nixl", statistics.median(ours), "GB/s", "NIXL").aiming_at(NIXL_AIM)
    best = max(OPERATIONS, key=lambda operation: statistics.median(figures[operation]))
    return against(f"{case}.nixl", ours, f"NIXL {best}", figures[best]).aiming_at(NIXL_AIM)


async def _perftest_rows(receiver: Receiver, rounds: int, total_bytes: int) -> list[report.Row]:
    """Return the rows against UCX's own program, which has one hot buffer."""
    rows = []
    for name, size in SIZES.items():
        kind = KINDS[kind_name(name, MANY, scattered=False)]

        async def perftest(size: int = size) -> float:
            return await asyncio.to_thread(ucx_perftest.bandwidth, SHARED_MEMORY, size, total_bytes, PEER_IN_FLIGHT)

        async def ours(kind: LotKind = kind) -> float:
            return await receiver.ours_gb_s(kind, SHARED_MEMORY)

        figures = await in_turn(f"{name} ucx_perftest", rounds, {"ours": ours, "peer": perftest})
        rows.append(against(f"kv.{name}.ucx_perftest", figures["ours"], "ucx_perftest, one buffer", figures["peer"]))
    return rows


async def _tcp_rows(receiver: Receiver, rounds: int, total_bytes: int) -> list[report.Row]:
    """Return the rows of Baton's transport where UCX has nothing but TCP."""
    rows = []
    for name in TCP_SIZES:
        case = kind_name(name, MANY, scattered=False)
        kind = KINDS[case]

        async def ours(kind: LotKind = kind) -> float:
            return await receiver.ours_gb_s(kind, TCP)

        async def sockets(kind: LotKind = kind) -> float:
            return await receiver.sockets_gb_s(kind)

        async def perftest(size: int = kind.size) -> float:
            return await asyncio.to_thread(ucx_perftest.bandwidth, TCP, size, total_bytes, PEER_IN_FLIGHT)

        measurements: dict[str, Measurement] = {"ours": ours, "sockets": sockets, "perftest": perftest}
        figures = await in_turn(f"{case} over TCP", rounds, measurements)
        plain = against(f"kv.tcp.{case}.sockets", figures["ours"], "TCP sockets, loopback", figures["sockets"])
        rows.append(plain.aiming_at(LIMIT_AIM))
        peer = "ucx_perftest, one buffer"
        rows.append(against(f"kv.tcp.{case}.ucx_perftest", figures["ours"], peer, figures["perftest"]))
    return rows


async def _digest_rows(receiver: Receiver, rounds: int) -> list[report.Row]:
    """Return the rows of one side's digests. The ratio is how often they go into the time of the move."""
    rows = []
    for name in DIGEST_SIZES:
        case = kind_name(name, HANDOVER_BLOCKS, scattered=True)
        kind = KINDS[case]

        async def digests(kind: LotKind = kind) -> float:
            return await receiver.digest_gb_s(kind)

        async def moves(kind: LotKind = kind) -> float:
            return await receiver.ours_gb_s(kind, SHARED_MEMORY)

        figures = await in_turn(f"{case} digests", rounds, {"digests": digests, "moves": moves})
        rows.append(against(f"kv.digest.{case}", figures["digests"], "moving the same blocks", figures["moves"]))
    return rows


async def _round_trip_rows(receiver: Receiver, rounds: int, messages: int) -> list[report.Row]:
    async def sleeping() -> float:
        return await asyncio.to_thread(ucx_perftest.round_trip, SHARED_MEMORY, TRIGGER_BYTES, messages, "sleep")

    async def polling() -> float:
        return await asyncio.to_thread(ucx_perftest.round_trip, SHARED_MEMORY, TRIGGER_BYTES, 20 * messages, "poll")

    measurements: dict[str, Measurement] = {
        "ours": lambda: receiver.round_trip_us(messages),
        "sleep": sleeping,
        "poll": polling,
    }
    figures = await in_turn("round trip", rounds, measurements)
    value, sleep, poll = (statistics.median(values) for values in figures.values())
    return [
        report.lower_is_better("kv.round_trip.sleeping", value, "us", "ucx_perftest tag_lat, sleeping", sleep),
        report.lower_is_better("kv.round_trip.polling", value, "us", "ucx_perftest tag_lat, spinning", poll),
    ]


async def _handover_row(receiver: Receiver, handovers: Handovers, rounds: int) -> report.Row:
    async def handover() -> float:
        return 1e3 * await handovers.handover_s()

    async def bare() -> float:
        return HANDOVER_KIND.lot_bytes / await receiver.ours_gb_s(HANDOVER_KIND, SHARED_MEMORY) / 1e6

    figures = await in_turn("hand-over", rounds, {"ours": handover, "bare": bare})
    value, moved = (statistics.median(values) for values in figures.values())
    return report.lower_is_better("kv.handover.32x192KiB", value, "ms", "the bare transport, same blocks", moved)


async def measure(*, quick: bool) -> list[report.Row]:
    """Return a row for each of `CASES`."""
    rounds = 1 if quick else 7
    pool_bytes = QUICK_POOL_BYTES if quick else POOL_BYTES
    rows = []
    with contextlib.ExitStack() as exits:
        nixl = exits.enter_context(nixl_pair(pool_bytes)) if installed() else None
        async with both_sides(pool_bytes) as (receiver, handovers):
            for name in KINDS:
                rows += await _lot_rows(receiver, nixl, rounds, name)
            rows += await _perftest_rows(receiver, rounds, pool_bytes)
            rows += await _tcp_rows(receiver, rounds, pool_bytes)
            for name in SMALL_KINDS:
                rows += await _stream_rows(receiver, nixl, 3 * rounds, name)
            rows += await _digest_rows(receiver, rounds)
            rows += await _round_trip_rows(receiver, rounds, 50 if quick else 1000)
            rows.append(await _handover_row(receiver, handovers, 3 * rounds))
    return rows


def main() -> None:
    """Measure and print."""
    parser = report.parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: blocks in one GPU's memory")
    options = parser.parse_args()
    if options.device == "cuda":
        require_device()
        rows = asyncio.run(kv_cuda.measure("cuda", quick=options.quick))
    else:
        rows = asyncio.run(measure(quick=options.quick))
    report.show(rows, as_json=options.json)


if __name__ == "__main__":
    main()
