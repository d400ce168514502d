"""One attempt while it runs: its legs, started together, and what they have said so far."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from cluster_core.errors import BatonError
from cluster_core.identity import Attempt, Role
from cluster_core.workers import WorkerRecord
from cluster_rpc.v1 import worker_pb2
from cluster_rpc.worker_messages import PrefillOrigin, WorkOrder, decode_to_proto, prefill_to_proto
from router.legs import Leg, LegEnded, Mail
from router.mailbox import Mailbox
from router.membership import Worker
from router.placement_history import AttemptRecord
from router.placer import Placed


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt cannot go on, and the worker to avoid."""

    error: BatonError
    blamed: WorkerRecord
    answered: bool
    """False when the worker itself is out of reach."""


class AttemptRun:
    """The legs of one attempt. Whoever starts it must `close` it."""

    def __init__(self, attempt: Attempt, placed: Placed, record: AttemptRecord, capacity: int) -> None:
        self.attempt = attempt
        self.placed = placed
        self.record = record
        self.failure: Failure | None = None
        self.prompt_read = False
        """Whether the first token has come."""
        self.held: list[worker_pb2.Tokens] = []
        """Tokens of the decode leg that overtook the prefill leg's first one."""
        self.held_end: tuple[Leg, LegEnded] | None = None
        """The decode leg's orderly end, if that overtook the first token as well."""
        self._mailbox: Mailbox[Mail] = Mailbox(capacity)
        self._legs: list[Leg] = []
        self._workers: list[Worker] = []
        self._decode_call: asyncio.Handle | None = None

    @property
    def split(self) -> bool:
        """Whether the prompt is read by another worker than the one that writes."""
        return self.placed.prefill is not None

    def start(self, order: WorkOrder, timeout_s: float | None) -> None:
        """Call the workers; they must end within ``timeout_s`` seconds.

        The prefill call is on the wire before the decode call is made: the first token waits for one of them only.
        """
        prefill = self.placed.prefill
        if prefill is None:
            self._call_decode(order, timeout_s)
            return
        call = prefill.connection.prefill(prefill_to_proto(order), timeout=timeout_s)
        self._add(Role.PREFILL, prefill, call)
        origin = PrefillOrigin(
            worker_id=prefill.record.worker_id,
            incarnation=prefill.record.incarnation,
            address=prefill.record.address,
        )
        # gRPC has scheduled its own first step, which writes the call; this one comes after it.
        later = asyncio.get_running_loop().call_soon
        self._decode_call = later(self._call_decode, replace(order, origin=origin), timeout_s)

    def _call_decode(self, order: WorkOrder, timeout_s: float | None) -> None:
        decode = self.placed.decode
        self._add(Role.DECODE, decode, decode.connection.decode(decode_to_proto(order), timeout=timeout_s))

    async def receive(self) -> list[Mail]:
        """Wait for events of the legs, and take all there are."""
        return await self._mailbox.receive_all()

    def leg_ended(self, leg: Leg, ended: LegEnded) -> None:
        """Note the end of a stream that left the answer incomplete.

        A prefill leg has done its part with the first token; whether the blocks arrive, the decode leg will say.
        """
        if self.failure is not None or (leg.role is Role.PREFILL and self.prompt_read):
            return
        error = ended.error
        if error is None and leg.role is Role.DECODE and self.split and not self.prompt_read:
            self.held_end = leg, ended
            return
        if error is None:
            error = BatonError(f"{leg.record.worker_id} ended its stream before its work was done")
        blamed = leg.record
        if ended.blames_exporter and self.placed.prefill is not None:
            blamed = self.placed.prefill.record
        self.failure = Failure(error=error, blamed=blamed, answered=ended.answered)

    async def close(self, patience_s: float) -> None:
        """End the legs: those that do not end by themselves within ``patience_s`` seconds are cancelled."""
        if self._decode_call is not None:
            self._decode_call.cancel()
        try:
            if patience_s > 0:
                async with asyncio.timeout(patience_s):
                    for leg in self._legs:
                        await leg.ended()
        except TimeoutError:
            pass
        finally:
            for leg in self._legs:
                leg.cancel()
            for worker, leg in zip(self._workers, self._legs, strict=True):
                worker.on_silence.discard(leg.give_up)
        for leg in self._legs:
            await leg.ended()

    def _add(self, role: Role, worker: Worker, call: Any) -> None:
        leg = Leg(role, worker.record, call, self._mailbox)
        worker.on_silence.add(leg.give_up)
        self._workers.append(worker)
        self._legs.append(leg)
