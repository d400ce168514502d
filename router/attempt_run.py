"""One attempt while it runs: its legs, started together, and what they have said so far."""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Any

import grpc

from cluster_core.errors import BatonError, LegFailed
from cluster_core.identity import Attempt, Role
from cluster_core.workers import WorkerRecord
from cluster_rpc.v1 import worker_pb2
from cluster_rpc.worker_messages import PrefillOrigin, WorkOrder, decode_to_proto, prefill_to_proto
from router.answer_choice import AnswerChoice
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


END_CHOICE_S = 1.0
"""How long a decode worker may take to hear that an answer need not go on."""


class AttemptRun:
    """The legs of one attempt at some of a request's answers. Whoever starts it must `close` it."""

    def __init__(
        self,
        attempt: Attempt,
        choices: tuple[AnswerChoice, ...],
        placed: Placed,
        record: AttemptRecord,
        mailbox: Mailbox[Mail],
    ) -> None:
        """Mails of the legs go to ``mailbox``, in which those of other attempts may lie as well."""
        self.attempt = attempt
        self.choices = choices
        self.placed = placed
        self.record = record
        self.failure: Failure | None = None
        self.prompt_read = False
        """Whether the first token has come, of every choice."""
        self.held: list[worker_pb2.Tokens] = []
        """Tokens of the decode leg that overtook the prefill leg's first ones."""
        self.held_end: tuple[Leg, LegEnded] | None = None
        """The decode leg's orderly end, if that overtook the first tokens as well."""
        self._mailbox = mailbox
        self._legs: list[Leg] = []
        self._workers: list[Worker] = []
        self._decode_call: asyncio.Handle | None = None
        self._request_id = ""
        self._endings: list[asyncio.Future[None]] = []

    @property
    def split(self) -> bool:
        """Whether the prompt is read by another worker than the one that writes."""
        return self.placed.prefill is not None

    @property
    def complete(self) -> bool:
        """Whether all its answers are."""
        return all(choice.log.finish_reason is not None for choice in self.choices)

    def owns(self, leg: Leg) -> bool:
        """Say whether ``leg`` is one of this attempt's."""
        return leg in self._legs

    def choice(self, number: int) -> AnswerChoice:
        """Return the answer that its workers know by ``number``. Raises `LegFailed` where they know of too many."""
        if number >= len(self.choices):
            message = f"a worker wrote choice {number} of {len(self.choices)}"
            raise LegFailed(message)
        return self.choices[number]

    def start(self, order: WorkOrder, timeout_s: float | None) -> None:
        """Call the workers; they must end within ``timeout_s`` seconds.

        The prefill call is on the wire before the decode call is made: the first token waits for one of them only.
        """
        self._request_id = order.request_id
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

    def end_choice(self, choice: AnswerChoice) -> None:
        """Tell the decode worker that it need not go on with one of its answers, while it writes the others."""
        request = worker_pb2.EndChoiceRequest(
            request_id=self._request_id, attempt=self.attempt, choice=self.choices.index(choice)
        )
        call = self.placed.decode.connection.end_choice(request, timeout=END_CHOICE_S)
        self._endings.append(asyncio.ensure_future(_ended(call)))

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
        await asyncio.gather(*self._endings)

    def _add(self, role: Role, worker: Worker, call: Any) -> None:
        leg = Leg(role, worker.record, call, self._mailbox)
        worker.on_silence.add(leg.give_up)
        self._workers.append(worker)
        self._legs.append(leg)


async def _ended(call: Any) -> None:
    """Wait for a call whose failure harms nobody: the worker writes tokens that are dropped."""
    with contextlib.suppress(grpc.RpcError):
        await call
