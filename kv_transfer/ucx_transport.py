"""UCX, by ucxx: the only file that imports it.

Life of an endpoint. To *send* to a worker there is one endpoint to its address, made at the first send, kept until it
fails, and dropped when the next one is made. To *receive*, UCX needs no endpoint: messages match by tag. But a receive
can only be cancelled through the endpoint that it was posted on, so each `UcxPeer` with receives pending borrows a
**group**: an endpoint to this very process that carries nothing. Closing a group cancels its receives and nobody
else's. A group that was not closed goes back to the shelf.

Error handling is on (``endpoint_error_handling=True``). Without it, reading from a process that has just died (CMA's
``process_vm_readv``) ends *this* process. With it, UCX leaves shared memory and CMA out unless told that they can
bear it (`_FAULT_OPTIONS`); then messages go by both, a failed read fails one message, and UCX's keep-alive finds a
dead peer. CMA can bear it in our use: what it lacks is a way to stop a lost peer from reading our memory later, and
whoever reads a block too late finds out by its digest.

Progress is ours. ucxx's own loop in asyncio spins while any request is pending, and here receives are pending for as
long as a prefill computes. Instead, UCX's event descriptor wakes the loop, `_UcxWorker._advance` runs UCX until it is
idle and arms the descriptor again. One turn is bounded, so that large copies do not stop the loop for long.

UCX and ucxx read environment variables when they are loaded. They are set here, in `_load_ucxx`, and nowhere
else: an exception from the rule that only ``__main__`` touches the environment, made because loading happens here.
"""

import asyncio
import ctypes
import itertools
import os
import sys
import time
from asyncio import Future
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_core.errors import LegFailed, PartUnavailable, TransferFailed, WorkerLost
from kv_transfer.lots import Landed, Lot, settle
from kv_transfer.rows import nobody_hears, one_row
from kv_transfer.settings import TransferSettings
from kv_transfer.ucx_lanes import endpoint_lanes

_ENVIRONMENT = {
    "UCX_LOG_LEVEL": "fatal",  # UCX prints what is reported here as an exception: a dead peer is no news
    "UCX_WARN_UNUSED_ENV_VARS": "n",  # ucxx sets variables that a UCX without CUDA does not know
    # To hear of memory that is given back UCX rewrites four functions of libc, and waits each time until threads have
    # left the first bytes: 0.4 s of a start by default. It must ("none" crashes when an endpoint is closed by force,
    # "reloc" locks up where other threads allocate), but hardly any thread runs yet when a worker loads UCX.
    "UCX_MEM_BISTRO_GRACE_DURATION": "10ms",
}
_HOST_TLS = ("posix,cma,self,tcp", "sysv,cma,self,tcp")
_CUDA_TLS = ",cuda_copy,cuda_ipc"
_FAULT_OPTIONS = {"MM_ERROR_HANDLING": "y", "CMA_MEMORY_INVALIDATE": "y"}
_TCP_OPTIONS = {"TCP_TX_SEG_SIZE": "256k", "TCP_RX_SEG_SIZE": "256k"}
"""Pieces in which TCP takes bytes: a quarter of the system's time that UCX's own sizes (8 and 64 KiB) take."""
_TURN_S = 0.001
"""How long UCX may run before the event loop gets a turn."""
_LOOKED_AT = 128
"""Requests of a lot that are asked whether they are complete while UCX goes on; they complete mostly in order."""
_RENDEZVOUS_BYTES = "8192"
"""From this size on the receiver fetches the bytes itself, with one copy; below, they travel through a ring buffer."""


def _load_ucxx() -> Any:
    if "nixl_cu12" in sys.modules or "nixl_cu13" in sys.modules:
        message = "transport ucx: this process has loaded NIXL, and two copies of UCX in one process crash it"
        raise PartUnavailable(message)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ucxx  # noqa: PLC0415  # after its environment is set
    except ImportError as error:
        message = f'transport ucx: {error}; install ucxx-cu12, or set transport = "loopback" for a single process'
        raise PartUnavailable(message) from error
    return ucxx


def _default_tls() -> tuple[str, ...]:
    cuda = _CUDA_TLS if Path("/dev/nvidiactl").exists() else ""
    return tuple(tls + cuda for tls in _HOST_TLS)


class UcxTransport:
    """See `kv_transfer.transport.Transport`."""

    name = "ucx"

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings
        self._worker: _UcxWorker | None = None

    @property
    def address(self) -> bytes:
        """UCX's worker address."""
        assert self._worker is not None, "start() comes first"
        return self._worker.address

    async def start(self) -> None:
        """Load UCX and open a worker on the running loop, which may run in any thread."""
        ucxx = _load_ucxx()
        failures: list[str] = []
        for tls in (self._settings.ucx_tls,) if self._settings.ucx_tls else _default_tls():
            try:
                self._worker = _UcxWorker(ucxx, tls, self._settings.ucx_keepalive_s)
            except (ucxx.exceptions.UCXError, OSError, RuntimeError) as error:
                failures.append(f"UCX_TLS={tls}: {error}")
            else:
                return
        message = f"transport ucx: {'; '.join(failures)}; name transports that work here with [transfer] ucx_tls"
        raise PartUnavailable(message)

    async def connect(self, address: bytes) -> "UcxPeer":
        """Return a peer for the worker at ``address``."""
        assert self._worker is not None, "start() comes first"
        return UcxPeer(self._worker, address)

    def lanes(self, address: bytes) -> tuple[str, ...]:
        """Return what carries messages to ``address``, as UCX names it; none before the first message."""
        assert self._worker is not None, "start() comes first"
        return self._worker.lanes(address)

    async def close(self) -> None:
        """Close every endpoint by force, fail what is pending, and give the worker back to UCX."""
        if self._worker is not None:
            self._worker.close()


class UcxPeer:
    """See `kv_transfer.transport.Peer`."""

    def __init__(self, worker: "_UcxWorker", address: bytes) -> None:
        self._worker = worker
        self._address = address
        self._group: Any = None
        self._receives: set[Future[None]] = set()

    def send(self, buffer: Any, tag: int) -> Future[None]:
        """Post a send."""
        return self.send_lot(one_row(buffer, tag))

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        """Post a receive."""
        return self.receive_lot(one_row(buffer, tag), nobody_hears)

    def send_lot(self, lot: Lot) -> Future[None]:
        """Post sends."""
        return self._worker.send(self._address, lot)

    def receive_lot(self, lot: Lot, landed: Landed) -> Future[None]:
        """Post receives."""
        if self._group is None:
            self._group = self._worker.borrow_group()
        done = self._worker.receive(self._group, lot, landed, self.abort)
        self._receives.add(done)
        done.add_done_callback(self._received)
        return done

    def _received(self, done: Future[None]) -> None:
        self._receives.discard(done)
        if self._group is not None and not self._receives:
            self._worker.return_group(self._group)
            self._group = None

    def abort(self) -> None:
        """Cancel this peer's receives."""
        if self._group is not None:
            self._worker.close_group(self._group)
            self._group = None


@dataclass(slots=True, eq=False, kw_only=True)
class _LotRequests:
    """The requests of a lot that UCX has not completed, and the place of each. The lot's memory stays referenced.

    Not only for the answer's sake: ucxx cancels a request whose Python object is dropped, and tells nobody.
    """

    lot: Lot
    done: Future[None]
    landed: Landed
    failed: Callable[[], None]
    """To be called when one of them fails, to end the others."""
    error: type[LegFailed]
    pending: dict[Any, int] = field(default_factory=dict)
    failure: LegFailed | None = None

    def end(self, reason: str) -> None:
        """Give up what is left."""
        settle(self.done, self.failure or self.error(reason))


class _UcxWorker:
    """One UCX worker on the running event loop: its requests, its endpoints, its progress."""

    def __init__(self, ucxx: Any, tls: str, keepalive_s: float) -> None:
        self._library = ucxx.libucxx
        self._errors = ucxx.exceptions.UCXError
        options = {
            **_FAULT_OPTIONS,
            **_TCP_OPTIONS,
            "TLS": tls,
            "KEEPALIVE_INTERVAL": f"{keepalive_s}s",
            "RNDV_THRESH": _RENDEZVOUS_BYTES,
        }
        self._context = self._library.UCXContext(options, (self._library.Feature.TAG, self._library.Feature.WAKEUP))
        self._worker = self._library.UCXWorker(
            self._context, enable_delayed_submission=False, enable_python_future=False
        )
        _keep_forever(self._worker)
        self._worker.init_blocking_progress_mode()
        self.address: bytes = self._worker.address.tobytes()
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._array = _array_type()
        self._lots: set[_LotRequests] = set()
        self._links: dict[bytes, Any] = {}
        self._groups: set[Any] = set()
        self._idle_groups: list[Any] = []
        self.return_group(self.borrow_group())  # the first one takes longest
        self._loop.add_reader(self._worker.epoll_file_descriptor, self._advance)
        self._schedule()

    def send(self, address: bytes, lot: Lot) -> Future[None]:
        """Post the sends of a lot; raises `WorkerLost` when there is no way to ``address``."""
        return self._post(self._link(address).tag_send, lot, nobody_hears, _let_be, WorkerLost)

    def receive(self, group: Any, lot: Lot, landed: Landed, failed: Callable[[], None]) -> Future[None]:
        """Post the receives of a lot, which closing ``group`` cancels."""
        return self._post(group.tag_recv, lot, landed, failed, TransferFailed)

    def _post(
        self,
        post: Callable[[Any, Any], Any],
        lot: Lot,
        landed: Landed,
        failed: Callable[[], None],
        error: type[LegFailed],
    ) -> Future[None]:
        requests = _LotRequests(lot=lot, done=self._loop.create_future(), landed=landed, failed=failed, error=error)
        as_array, as_tag, rows, first = self._array, self._library.UCXXTag, lot.rows, lot.tag
        for place, (index, number) in enumerate(zip(lot.indices, lot.numbers, strict=True)):
            requests.pending[post(as_array(rows[index]), as_tag(first + number))] = place
        self._lots.add(requests)
        self._schedule()
        return requests.done

    # Progress

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._advance)

    def _advance(self) -> None:
        """Run UCX until it has nothing to do or the turn is over; then wait for its event, or for the next turn."""
        self._scheduled = False
        if self._worker is None:
            return
        turn_ends = time.monotonic() + _TURN_S
        busy = True
        while busy and time.monotonic() < turn_ends:
            busy = self._worker.progress_once()
        self._finish_completed(all_of_them=not busy)
        if busy or not self._worker.arm():
            self._schedule()

    def _finish_completed(self, *, all_of_them: bool = True) -> None:
        for requests in list(self._lots):
            looked_at = requests.pending if all_of_them else itertools.islice(requests.pending, _LOOKED_AT)
            if completed := [request for request in looked_at if request.completed]:
                self._finish(requests, completed)
            if not requests.pending:
                self._lots.discard(requests)
                settle(requests.done, requests.failure)

    def _finish(self, requests: _LotRequests, completed: list[Any]) -> None:
        places, sound = [], requests.failure is None
        for request in completed:
            place = requests.pending.pop(request)
            try:
                request.check_error()
            except self._errors as error:
                requests.failure = requests.failure or requests.error(f"ucx: {error}")
            else:
                places.append(place)
        if places:
            requests.landed(places)
        if sound and requests.failure is not None:
            requests.failed()

    # Endpoints

    def _link(self, address: bytes) -> Any:
        link = self._links.get(address)
        if link is not None and link.alive:
            return link
        try:
            ucx_address = self._library.UCXAddress.create_from_buffer(address)
            link = self._library.UCXEndpoint.create_from_worker_address(
                self._worker, ucx_address, endpoint_error_handling=True
            )
        except (self._errors, ValueError) as error:
            message = f"ucx: no way to the other worker ({error})"
            raise WorkerLost(message) from error
        self._links = {known: old for known, old in self._links.items() if old.alive}  # a restarted worker comes anew
        self._links[address] = link
        return link

    def lanes(self, address: bytes) -> tuple[str, ...]:
        """Return the names of what the endpoint to ``address`` uses, if there is one."""
        link = self._links.get(address)
        return endpoint_lanes(link.handle) if link is not None and link.alive else ()

    def borrow_group(self) -> Any:
        """Return an endpoint that no other peer posts receives on."""
        if self._idle_groups:
            return self._idle_groups.pop()
        group = self._library.UCXEndpoint.create_from_worker_address(
            self._worker, self._worker.address, endpoint_error_handling=False
        )
        self._groups.add(group)
        return group

    def return_group(self, group: Any) -> None:
        """Take back a group without pending receives."""
        if group in self._groups:
            self._idle_groups.append(group)

    def close_group(self, group: Any) -> None:
        """Cancel the receives posted on ``group``; their futures follow when UCX is sure."""
        self._groups.discard(group)
        group.close_blocking()
        self._schedule()

    def close(self) -> None:
        """Let go of everything.

        The worker itself is freed only when nothing is left to receive: ucxx's destructor receives what nobody did, and
        waits for ever when its sender is gone. A worker that cannot be freed is left to the end of the process.
        """
        if self._worker is None:
            return
        self._loop.remove_reader(self._worker.epoll_file_descriptor)
        for endpoint in (*self._links.values(), *self._groups):
            endpoint.close_blocking()
        self._worker.progress()
        self._finish_completed()
        unfinished = list(self._lots)
        if (
            not unfinished
            and not self._worker.tag_probe(self._library.UCXXTag(0), self._library.UCXXTagMask(0)).matched
        ):
            _let_go(self._worker)
        self._lots.clear()
        self._links.clear()
        self._groups.clear()
        self._idle_groups.clear()
        self._worker = self._context = None
        for requests in unfinished:
            requests.end("ucx: the transport was closed")


def _let_be() -> None:
    """Leave the other sends of a lot alone when one fails: they end as it did."""


def _keep_forever(worker: Any) -> None:
    """Keep ``worker`` alive past the interpreter's end, unless `_let_go` follows: its destructor might not return."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(worker))


def _let_go(worker: Any) -> None:
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(worker))


def _array_type() -> Any:
    from ucxx._lib.arr import Array  # noqa: PLC0415  # loaded late as ucxx is; it has no public name

    return Array
