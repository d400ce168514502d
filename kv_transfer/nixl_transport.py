"""NIXL: the only file that imports it. It brings a UCX of its own, with InfiniBand, RoCE and EFA.

Life of a message. `NixlPeer.send` says where it lies (an advert, see `kv_transfer.nixl_messages`). The receiver, when
it has a receive for the tag, reads it (a one-sided READ) into its own buffer and answers that it was taken; then the
send is done. Nobody writes into memory that is not its own, so a receive that was given up cannot be hit by late bytes.

What a peer is told of a region also lets it write there; UCX has no keys for reading only. So a worker publishes
regions that it has sent from, and no others, to the workers that it sends to: they are as trusted as its code.

One process holds one UCX: this transport and the one over ucxx exclude each other (`TransferSettings.transport`).
"""

import importlib
import os
import secrets
import sys
from asyncio import Future
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster_core.errors import PartUnavailable, TransferFailed, WorkerLost
from kv_transfer.lots import Landed, Lot
from kv_transfer.nixl_memory import Span
from kv_transfer.nixl_messages import Space, pack_address
from kv_transfer.nixl_remotes import Read
from kv_transfer.nixl_worker import NixlWorker
from kv_transfer.settings import TransferSettings

_ENVIRONMENT = {
    "NIXL_LOG_LEVEL": "FATAL",  # what NIXL logs, some of it to standard output, is reported here as an exception
    "UCX_LOG_LEVEL": "fatal",
    "UCX_MEM_BISTRO_GRACE_DURATION": "10ms",  # see kv_transfer.ucx_transport
}
_WHEELS = ("nixl_cu12", "nixl_cu13")
_BACKEND = "UCX"
_FAULT_OPTIONS = "MM_ERROR_HANDLING=y,CMA_MEMORY_INVALIDATE=y"  # see docs/decisions/ucx-error-handling.md


def load_nixl(settings: TransferSettings) -> Any:
    """Return NIXL's Python interface. Raises `PartUnavailable` without it, or when this process has another UCX."""
    if "ucxx" in sys.modules:
        message = "transport nixl: this process has loaded ucxx, and two copies of UCX in one process crash it"
        raise PartUnavailable(message)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if settings.ucx_tls:
        os.environ["UCX_TLS"] = settings.ucx_tls
    for wheel in _WHEELS:
        try:
            return importlib.import_module(f"{wheel}._api")
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            message = f"transport nixl: {wheel} does not load ({error}); reinstall the wheel"
            raise PartUnavailable(message) from error
    message = "transport nixl: NIXL is not installed; run `pip install 'baton-serve[nixl]'`, or set transport = \"ucx\""
    raise PartUnavailable(message)


class NixlTransport:
    """See `kv_transfer.transport.Transport`."""

    name = "nixl"

    def __init__(self, settings: TransferSettings) -> None:
        self._settings = settings
        self._worker: NixlWorker | None = None
        self._address = b""

    @property
    def address(self) -> bytes:
        """The agent's name, and its connection as NIXL packs it."""
        assert self._address, "start() comes first"
        return self._address

    async def start(self) -> None:
        """Load NIXL and open an agent; it belongs to the running loop."""
        agent = NixlAgent(load_nixl(self._settings), self._settings.ucx_keepalive_s)
        self._address = pack_address(agent.name, agent.metadata_of(()))
        self._worker = NixlWorker(agent, self._settings)

    async def connect(self, address: bytes) -> "NixlPeer":
        """Return a peer for the worker at ``address``."""
        assert self._worker is not None, "start() comes first"
        return NixlPeer(self._worker, address)

    async def close(self) -> None:
        """End everything; a read that is running may finish within ``settle_timeout_s``."""
        if self._worker is not None:
            await self._worker.close()


class NixlPeer:
    """See `kv_transfer.transport.Peer`."""

    def __init__(self, worker: "NixlWorker", address: bytes) -> None:
        self._worker = worker
        self._address = address

    def send(self, buffer: Any, tag: int) -> Future[None]:
        """Offer a buffer."""
        return self._worker.send(self._address, buffer, tag)

    def receive(self, buffer: Any, tag: int) -> Future[None]:
        """Post a receive."""
        return self._worker.receive(self, buffer, tag)

    def send_lot(self, lot: Lot) -> Future[None]:
        """Offer blocks."""
        return self._worker.send_lot(self._address, lot)

    def receive_lot(self, lot: Lot, landed: Landed) -> Future[None]:
        """Post receives."""
        return self._worker.receive_lot(self, lot, landed)

    def abort(self) -> None:
        """End this peer's receives that nothing is read into yet."""
        self._worker.receives.abort(self)


class NixlAgent:
    """See `kv_transfer.nixl_remotes.ReadAgent`: one agent of NIXL with its backend for UCX."""

    def __init__(self, library: Any, keepalive_s: float) -> None:
        """Raise `PartUnavailable` when NIXL cannot open UCX here."""
        self.name = secrets.token_hex(8)
        self._library = library
        binding = library.nixlBind
        self._errors = tuple(getattr(binding, name) for name in dir(binding) if name.endswith("Error"))
        config = library.nixl_agent_config(enable_prog_thread=False, enable_listen_thread=False, backends=[])
        options = f"{_FAULT_OPTIONS},KEEPALIVE_INTERVAL={keepalive_s}s"
        try:
            self._agent = library.nixl_agent(self.name, config)
            self._agent.create_backend(_BACKEND, {"engine_config": options, "ucx_ep_close_force": "true"})
        except (*self._errors, RuntimeError) as error:
            message = f"transport nixl: {error}; name transports that work here with [transfer] ucx_tls"
            raise PartUnavailable(message) from error
        self._registered: list[Any] = []

    def register(self, span: Span) -> None:
        """Tell NIXL of ``span``."""
        descriptors = self._descriptors((span,))
        try:
            self._agent.register_memory(descriptors, backends=[_BACKEND])
        except self._errors as error:
            message = f"nixl: {span.size} bytes of memory cannot be registered ({error})"
            raise TransferFailed(message) from error
        self._registered.append(descriptors)

    def metadata_of(self, regions: Sequence[Span]) -> bytes:
        """Return connection and regions."""
        packed: bytes = self._agent.get_partial_agent_metadata(
            self._descriptors(regions), inc_conn_info=True, backends=[_BACKEND]
        )
        return packed

    def _descriptors(self, spans: Sequence[Span]) -> Any:
        kind = self._segment(spans[0].space if spans else Space())
        rows = [(span.address, span.size, span.space.device, "") for span in spans]
        return self._library.nixlBind.nixlRegDList(kind, rows) if rows else self._library.nixlBind.nixlRegDList(kind)

    def _segment(self, space: Space) -> Any:
        binding = self._library.nixlBind
        return binding.VRAM_SEG if space.on_device else binding.DRAM_SEG

    def add_remote(self, metadata: bytes) -> str:
        """Load what a remote says of itself."""
        try:
            name: bytes = self._agent.add_remote_agent(metadata)
        except self._errors as error:
            message = f"nixl: no way to the other worker ({error})"
            raise WorkerLost(message) from error
        return name.decode("ascii", "replace")

    def drop_remote(self, name: str) -> None:
        """Forget a remote, unless NIXL has done so itself."""
        try:
            self._agent.remove_remote_agent(name)
        except self._errors:
            return

    def notify(self, name: str, data: bytes) -> None:
        """Send a notification."""
        try:
            self._agent.send_notif(name, data)
        except self._errors as error:
            message = f"nixl: the other worker is gone ({error})"
            raise WorkerLost(message) from error

    def notifications(self) -> list[tuple[str, bytes]]:
        """Let NIXL work; return what was said meanwhile."""
        said: dict[str, list[bytes]] = self._agent.get_new_notifs([_BACKEND])
        return [(name, data) for name, some in said.items() for data in some]

    def start_read(self, name: str, read: Read) -> Any:
        """Start a READ."""
        try:
            handle = self._agent.initialize_xfer(
                "READ",
                self._transfer_list(read.here, read.here_space),
                self._transfer_list(read.there, read.there_space),
                name,
                backends=[_BACKEND],
            )
            self._agent.transfer(handle)
        except self._errors as error:
            message = f"nixl: reading failed ({error})"
            raise TransferFailed(message) from error
        return handle

    def _transfer_list(self, places: np.ndarray[Any, Any], space: Space) -> Any:
        rows = np.empty((len(places), 3), np.uint64)
        rows[:, :2] = places
        rows[:, 2] = space.device
        return self._library.nixlBind.nixlXferDList(self._segment(space), rows)

    def is_read(self, handle: Any) -> bool:
        """Ask after a READ."""
        try:
            state = self._agent.check_xfer_state(handle)
            if state == "PROC":
                return False
            handle.release()
        except self._errors as error:
            message = f"nixl: reading failed ({error})"
            raise TransferFailed(message) from error
        if state != "DONE":
            message = "nixl: reading failed"
            raise TransferFailed(message)
        return True

    def close(self) -> None:
        """Give everything back to NIXL."""
        for descriptors in self._registered:
            try:
                self._agent.deregister_memory(descriptors, backends=[_BACKEND])
            except self._errors:
                continue
        self._registered.clear()
        del self._agent
