"""Who is there. The directory tells which workers exist; a `Watch` stream to each tells whether it lives and how it is.

Life of a worker here: a record appears and its stream is opened -> the first status makes it *ready* (or *draining*) ->
a broken or silent stream makes it *lost* at once -> a new incarnation of the same worker takes its place, or its record
runs out and it is forgotten. A healthy stream is believed before the directory, whose server may have come back with
old data: a record that runs out changes nothing, and one of another incarnation is that of a *contender*, which takes
the place when it speaks or the present one falls silent. A worker whose model or block layout differs from the router's
is listed with the reason and never used.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import grpc

from block_directory.index import PrefixIndex
from cluster_core.errors import LegFailed
from cluster_core.identity import Incarnation, WorkerId
from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.workers import WorkerLoad, WorkerRecord
from cluster_rpc.channels import ChannelPool
from cluster_rpc.v1 import worker_pb2
from router.cost_model import WorkerView
from router.ledger import Ledger
from router.settings import RouterSettings
from router.worker_connection import WorkerConnection
from router.worker_watch import Watch

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What every worker must agree on with the router, or its answers and hashes would mean something else."""

    model: ModelIdentity
    layout: KvLayout

    def difference(self, record: WorkerRecord) -> str | None:
        """Name the first field in which a worker differs."""
        pairs = [
            (f"layout.{each.name}", getattr(record.layout, each.name), getattr(self.layout, each.name))
            for each in fields(KvLayout)
        ]
        pairs += [
            (f"model.{name}", getattr(record.model, name), getattr(self.model, name))
            for name in ("fingerprint", "vocab_size")
        ]
        for name, theirs, ours in pairs:
            if theirs != ours:
                return f"{name} is {theirs}, the router has {ours}"
        return None


@dataclass(slots=True, kw_only=True)
class Worker:
    """One life of a worker."""

    record: WorkerRecord
    connection: WorkerConnection
    refusal: str | None
    status: worker_pb2.WorkerStatus | None = None
    load: WorkerLoad = field(default_factory=WorkerLoad)
    links: Mapping[WorkerId, tuple[float, float]] = field(default_factory=dict)
    """What it knows of the ways from others to itself (see `router.cost_model.link_speed`)."""
    rounding_links: Mapping[WorkerId, tuple[float, float]] = field(default_factory=dict)
    """The same of hand-overs whose blocks are rounded (see `router.cost_model.handover_speed`)."""
    alive: bool = False
    told_to_drain: bool = False
    listed: bool = True
    watching: "asyncio.Task[None] | None" = None
    on_silence: dict[Callable[[str], None], None] = field(default_factory=dict)
    """Told when the worker falls silent while its connection stands: calls to it would wait for the keepalive."""

    @property
    def state(self) -> str:
        """``ready``, ``draining``, ``lost``, or ``refused: `` and why."""
        if self.refusal is not None:
            return f"refused: {self.refusal}"
        if not self.alive:
            return "lost"
        return "draining" if self.told_to_drain or self.load.draining else "ready"


class Membership:
    """The workers that the router knows. All of it runs on the event loop."""

    def __init__(
        self,
        *,
        expected: Expected,
        index: PrefixIndex,
        ledger: Ledger,
        channels: ChannelPool,
        settings: RouterSettings,
    ) -> None:
        self._expected = expected
        self._index = index
        self._ledger = ledger
        self._channels = channels
        self._settings = settings
        self._workers: dict[WorkerId, Worker] = {}
        self._contenders: dict[WorkerId, Worker] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def workers(self) -> list[Worker]:
        """Return every worker that is known, in the order of their names."""
        return [self._workers[name] for name in sorted(self._workers)]

    def find(self, worker_id: WorkerId) -> Worker | None:
        """Return the worker, whatever its state."""
        return self._workers.get(worker_id)

    def is_heard(self, incarnation: Incarnation) -> bool:
        """Say whether this life of a worker is known and speaks now."""
        return any(each.alive and each.record.incarnation == incarnation for each in self._workers.values())

    def ready_views(self) -> list[WorkerView]:
        """Return the workers that can be given a request now."""
        return [self._view(worker) for worker in self._workers.values() if worker.state == "ready"]

    def lending_views(self) -> list[WorkerView]:
        """Return the workers that can be asked for blocks of their caches now: also those that drain."""
        return [self._view(worker) for worker in self._workers.values() if worker.state in {"ready", "draining"}]

    def compatible_views(self) -> list[WorkerView]:
        """Return the workers that could serve once they are ready, for whether a request can ever fit."""
        return [self._view(worker) for worker in self._workers.values() if worker.refusal is None]

    async def wait_for_change(self, timeout_s: float) -> None:
        """Wait until a worker came, left or changed its state, or ``timeout_s`` seconds are over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    def on_workers(self, records: Sequence[WorkerRecord]) -> None:
        """Take in the directory's list of registrations."""
        listed = {record.worker_id for record in records}
        for record in records:
            known = self._workers.get(record.worker_id)
            if known is None:
                self._enter(self._watched(record))
            elif known.record.incarnation == record.incarnation:
                known.listed = True
            else:
                self._contend(known, record)
        for contender in list(self._contenders.values()):
            if contender.record not in records:
                self._dismiss(contender)
        for worker in list(self._workers.values()):
            if worker.record.worker_id not in listed:
                worker.listed = False
                if not worker.alive:
                    self._forget_later(worker)

    def suspect(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """Count a worker as lost because a call to it broke; its next status brings it back."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.record.incarnation == incarnation and worker.alive:
            self._lost(worker, "a call to it broke")

    async def drain(self, worker_id: WorkerId) -> bool:
        """Send nothing more to a worker, and tell it so. False when nobody has this name."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return False
        worker.told_to_drain = True
        self._notify()
        try:
            await worker.connection.drain(worker_pb2.DrainWorkerRequest(), timeout=DRAIN_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            message = f"{worker_id} gets no new requests, but could not be told to drain ({error.code().name})"
            raise LegFailed(message) from error
        return True

    async def close(self) -> None:
        """Stop watching."""
        for contender in list(self._contenders.values()):
            self._dismiss(contender)
        for worker in list(self._workers.values()):
            self._forget(worker)
        if self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)

    def _watched(self, record: WorkerRecord) -> Worker:
        worker = Worker(
            record=record,
            connection=WorkerConnection(self._channels, record),
            refusal=self._expected.difference(record),
        )
        watch = Watch(
            connection=worker.connection,
            incarnation=record.incarnation,
            settings=self._settings,
            on_status=lambda status, load: self._heard(worker, status, load),
            on_end=lambda why: self._lost(worker, why),
            on_silence=lambda why: self._silent(worker, why),
        )
        worker.watching = asyncio.get_running_loop().create_task(watch.run(), name=f"watch {record.worker_id}")
        return worker

    def _enter(self, worker: Worker) -> None:
        self._workers[worker.record.worker_id] = worker
        if worker.refusal is None:
            logger.info("%s has registered at %s", worker.record.worker_id, worker.record.address)
        else:
            logger.warning("%s is not used: %s", worker.record.worker_id, worker.refusal)
        self._notify()

    def _contend(self, known: Worker, record: WorkerRecord) -> None:
        """Let the directory's life of a worker take the place of the known one, at once or when it speaks."""
        contender = self._contenders.get(record.worker_id)
        if contender is not None and contender.record.incarnation != record.incarnation:
            self._dismiss(contender)
            contender = None
        if contender is None:
            contender = self._contenders[record.worker_id] = self._watched(record)
        if not known.alive:
            self._succeed(known, contender)

    def _succeed(self, known: Worker, contender: Worker) -> None:
        del self._contenders[known.record.worker_id]
        self._forget(known)
        self._index.drop(known.record.incarnation)
        self._enter(contender)

    def _dismiss(self, contender: Worker) -> None:
        del self._contenders[contender.record.worker_id]
        self._let_go(contender)

    def _heard(self, worker: Worker, status: worker_pb2.WorkerStatus, load: WorkerLoad) -> None:
        worker_id = worker.record.worker_id
        if self._contenders.get(worker_id) is worker:
            self._succeed(self._workers[worker_id], worker)
        before = worker.state
        worker.status, worker.load, worker.alive = status, load, True
        worker.links = {link.peer: (link.fixed_s, link.bytes_per_s) for link in load.links if link.bytes_per_s > 0}
        worker.rounding_links = {
            link.peer: (link.fixed_s, link.rounded_bytes_per_s) for link in load.links if link.rounded_bytes_per_s > 0
        }
        self._ledger.reported(worker_id)
        if worker.state != before:
            logger.info("%s is %s", worker_id, worker.state)
            self._notify()

    def _lost(self, worker: Worker, why: str) -> None:
        if worker.alive:
            worker.alive = False
            logger.warning("%s is lost: %s", worker.record.worker_id, why)
            self._notify()
            contender = self._contenders.get(worker.record.worker_id)
            if contender is not None:
                self._succeed(worker, contender)
                return
        if not worker.listed:
            self._forget_later(worker)

    def _silent(self, worker: Worker, why: str) -> None:
        for give_up in list(worker.on_silence):
            give_up(why)
        self._lost(worker, why)

    def _forget_later(self, worker: Worker) -> None:
        """Forget a worker that neither registers nor speaks; at once if it was asked to leave."""
        if worker.told_to_drain or worker.load.draining:
            self._forget(worker)
            return

        def forget_if_still_gone() -> None:
            if not worker.alive and not worker.listed:
                self._forget(worker)

        asyncio.get_running_loop().call_later(self._settings.forget_lost_s, forget_if_still_gone)

    def _forget(self, worker: Worker) -> None:
        """Let go of a worker; nothing happens if that is done already."""
        if self._workers.get(worker.record.worker_id) is not worker:
            return
        worker.alive = False
        del self._workers[worker.record.worker_id]
        self._ledger.forget(worker.record.worker_id)
        self._let_go(worker)
        self._notify()

    def _let_go(self, worker: Worker) -> None:
        if worker.watching is not None:
            worker.watching.cancel()
            self._end(worker.watching)
        discarding = self._discard_channel(worker.record.address)
        self._end(asyncio.get_running_loop().create_task(discarding, name="discard channel"))

    async def _discard_channel(self, address: str) -> None:
        """Close the channel to an address unless a worker that is known by now, of any name, has it."""
        known = (*self._workers.values(), *self._contenders.values())
        if all(worker.record.address != address for worker in known):
            await self._channels.discard(address)

    def _end(self, task: "asyncio.Task[None]") -> None:
        """Keep a task that is about to end until it has."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _view(self, worker: Worker) -> WorkerView:
        return WorkerView(
            record=worker.record,
            load=worker.load,
            assigned=self._ledger.assigned(worker.record.worker_id),
            links=worker.links,
            rounding_links=worker.rounding_links,
        )

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
