"""One attempt while it runs: its legs, started together, and what they have said so far."""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Any

import grpc

from cluster_core.errors import BatonError, LegFailed, RetryLater
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

LEG_END_S = 1.0
"""How long the decode leg of complete answers may take to end by itself before it is cancelled."""

LAST_WORDS_S = 0.25
"""How long a decode worker whose prefill worker was lost may take to notice it too, and to say what it has kept."""


class AttemptRun:
    """The legs of one attempt at some of a request's answers. Whoever starts it must `close` it.

    Its decode leg may change: `rebind` gives the order to another decode worker while the prefill leg stays.
    """

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
        self.order: WorkOrder
        """What the workers were told to do: known from the start on."""
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
        self._dropped: list[Leg] = []
        """Decode legs that others have replaced."""
        self._endings: list[asyncio.Future[None]] = []

    @property
    def split(self) -> bool:
        """Whether the prompt is read by another worker than the one that writes."""
        return self.placed.prefill is not None

    @property
    def complete(self) -> bool:
        """Whether all its answers are."""
        for choice in self.choices:  # noqa: SIM110  # asked at every mail: no generator
            if choice.log.finish_reason is None:
                return False
        return True

    @property
    def tries(self) -> int:
        """How often its answers have been tried: attempts, and decode legs that took over from others that failed."""
        return self.attempt + max(choice.rebound for choice in self.choices)

    def count_rebound(self, tries: int) -> None:
        """Count a change of the decode leg as ``tries``, 0 or 1; -1 takes one back that proved to be none."""
        for choice in self.choices:
            choice.rebound = max(0, choice.rebound + tries)

    def owns(self, leg: Leg) -> bool:
        """Say whether ``leg`` is one of this attempt's."""
        return leg in self._legs

    def choice(self, number: int) -> AnswerChoice:
        """Return the answer that its workers know by ``number``. Raises `LegFailed` where they know of too many."""
        if number >= len(self.choices):
            message = f"a worker wrote choice {number} of {len(self.choices)}"
            raise LegFailed(message)
        return self.choices[number]

    def link(self, transport: str) -> str:
        """Say where its blocks go from and to, and over what, with the lane where the decode worker has measured it."""
        prefill, decode = self.placed.prefill, self.placed.decode
        if prefill is None:
            return ""
        ids = prefill.record.worker_id, prefill.record.incarnation
        lane = next((link.lane for link in decode.load.links if (link.peer, link.incarnation) == ids), "")
        way = f"{transport} ({lane})" if lane else transport
        return f"{prefill.record.worker_id} → {decode.record.worker_id} over {way}"

    @property
    def _handed_over(self) -> bool:
        """Whether the decode leg needs its prefill worker no more: it has the blocks, or has read the prompt itself."""
        return self.record.handoff is not None or any(choice.handed_over for choice in self.choices)

    @property
    def kept_blocks(self) -> int:
        """Leading full blocks of the prompt that the decode worker says it has kept of a hand-over that failed."""
        return max((leg.kept_blocks for leg in self._legs), default=0)

    @property
    def on_offer(self) -> bool:
        """Whether the prefill worker reads the prompt, or keeps what it has read for a decode worker to fetch."""
        return any(leg.role is Role.PREFILL and not leg.over for leg in self._legs)

    @property
    def waits_for_room(self) -> bool:
        """Whether the prompt has been read, and its decode worker has not found room for it yet."""
        if not self.prompt_read or any(leg.started for leg in self._legs if leg.role is Role.DECODE):
            return False
        return self.on_offer and self.failure is None and not self.complete

    @property
    def patience_s(self) -> float:
        """How long the decode leg may go on after the answers: a worker that counts with the router ends by itself."""
        by_count = self.complete and all(choice.stop_string is None for choice in self.choices)
        writer_knows = by_count and (not self.split or all(choice.handed_over for choice in self.choices))
        return LEG_END_S if writer_knows else 0.0

    @property
    def last_words_s(self) -> float:
        """How long the legs may go on after a failure: a decode worker in the midst of an import ends by itself.

        Its prefill worker is gone; what it has of the blocks is worth to be known before the next attempt is placed.
        """
        failure = self.failure
        if failure is None or failure.blamed.role is not Role.PREFILL or isinstance(failure.error, RetryLater):
            return 0.0
        importing = any(leg.started and leg.role is Role.DECODE for leg in self._legs) and self.record.handoff is None
        return LAST_WORDS_S if importing else 0.0

    def start(self, order: WorkOrder, timeout_s: float | None) -> None:
        """Call the workers; they must end within ``timeout_s`` seconds.

        The prefill call is on the wire before the decode call is made: the first token waits for one of them only.
        """
        self.order = order
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
        self.order = replace(order, origin=origin)
        self._decode_call = asyncio.get_running_loop().call_soon(self._call_decode, self.order, timeout_s)

    def rebind(self, placed: Placed, record: AttemptRecord, timeout_s: float | None) -> None:
        """Drop the decode leg, which has failed, and call the decode worker of ``placed`` with the same order."""
        origin = self.order.origin
        assert origin is not None, "only what another worker reads can be bound anew"
        for worker, leg in list(zip(self._workers, self._legs, strict=True)):
            if leg.role is Role.DECODE:
                leg.fenced = True
                leg.cancel()
                worker.on_silence.pop(leg.give_up, None)
                self._workers.remove(worker)
                self._legs.remove(leg)
                self._dropped.append(leg)
        self.placed, self.record, self.failure = placed, record, None
        self.held.clear()
        self.held_end = None
        self.order = replace(self.order, origin=replace(origin, binding=origin.binding + 1))
        self._call_decode(self.order, timeout_s)

    def _call_decode(self, order: WorkOrder, timeout_s: float | None) -> None:
        decode = self.placed.decode
        self._add(Role.DECODE, decode, decode.connection.decode(decode_to_proto(order), timeout=timeout_s))

    def leg_ended(self, leg: Leg, ended: LegEnded) -> None:
        """Note the end of a stream that left the answer incomplete.

        Whether the blocks arrive after the first token, the decode leg will say, unless the prefill worker is gone: a
        decode worker that waits for room, or for a peer that stands still, would notice that much later.
        """
        if self.failure is not None:
            return
        if leg.role is Role.PREFILL and self.prompt_read and (ended.answered or self._handed_over):
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
            request_id=self.order.request_id, attempt=self.attempt, choice=self.choices.index(choice)
        )
        call = self.placed.decode.connection.end_choice(request, timeout=END_CHOICE_S)
        self._endings.append(asyncio.ensure_future(_ended(call)))

    async def close(self, patience_s: float) -> None:
        """End the legs: a decode leg may end by itself within ``patience_s`` seconds, then all are cancelled.

        A prefill leg ends when its blocks have been accepted; if they are still on offer, nobody needs them any more.
        """
        if self._decode_call is not None:
            self._decode_call.cancel()
        for leg in self._legs:
            leg.fenced = self.failure is not None
        try:
            if patience_s > 0:
                async with asyncio.timeout(patience_s):
                    for leg in self._legs:
                        if leg.role is Role.DECODE:
                            await leg.ended()
        except TimeoutError:
            pass
        finally:
            for leg in self._legs:
                leg.cancel()
            for worker, leg in zip(self._workers, self._legs, strict=True):
                worker.on_silence.pop(leg.give_up, None)
        for leg in (*self._legs, *self._dropped):
            await leg.ended()
        await asyncio.gather(*self._endings, return_exceptions=True)

    def _add(self, role: Role, worker: Worker, call: Any) -> None:
        leg = Leg(role, worker.record, call, self._mailbox)
        worker.on_silence[leg.give_up] = None
        self._workers.append(worker)
        self._legs.append(leg)


async def _ended(call: Any) -> None:
    """Wait for a call whose failure harms nobody: the worker writes tokens that are dropped."""
    with contextlib.suppress(grpc.RpcError):
        await call
