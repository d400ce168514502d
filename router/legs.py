"""The two legs of a placement: calls to workers whose events flow into one mailbox.

A leg is a task that reads its stream and nothing else; what the events mean is for the flow to say. However a stream
ends, its last mail is a `LegEnded`. Cancelling a leg cancels its call, which aborts the work on the worker.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
from grpc.aio import EOF as END_OF_STREAM  # type: ignore[attr-defined]  # missing in the stubs

from cluster_core.errors import BatonError, ExportGone, TransferFailed, WorkerLost
from cluster_core.identity import Role
from cluster_core.workers import WorkerRecord
from cluster_rpc.errors import from_worker_error
from cluster_rpc.v1 import worker_pb2
from router.mailbox import Mailbox

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class LegEnded:
    """A stream is over: in order when ``error`` is None."""

    error: BatonError | None
    answered: bool = True
    """Whether the worker itself gave the error. Otherwise gRPC did, because the worker is gone."""
    blames_exporter: bool = False
    """Whether a decode worker says that it failed for want of its prefill worker."""


Event = worker_pb2.PrefillEvent | worker_pb2.DecodeEvent | LegEnded
Mail = tuple["Leg", Event]


class Leg:
    """One call of one attempt."""

    def __init__(self, role: Role, record: WorkerRecord, call: Any, mailbox: Mailbox[Mail]) -> None:
        self.role = role
        self.record = record
        self.started = False
        """Whether the worker has admitted the order."""
        self.over = False
        """Whether the stream has ended. A prefill worker ends it when nothing is on offer any more."""
        self.kept_blocks = 0
        """What a decode worker says it has kept of a hand-over that failed: leading full blocks of the prompt."""
        self.fenced = False
        """Whether its attempt has failed, or another leg has its place: tokens that it still sends are late."""
        self._call = call
        self._mailbox = mailbox
        self._task = asyncio.get_running_loop().create_task(self._read(), name=f"{role.value} leg")

    def cancel(self) -> None:
        """End the call; the worker drops the work."""
        self._call.cancel()
        self._task.cancel()

    def give_up(self, reason: str) -> None:
        """End the leg because its worker no longer speaks, though its connection stands."""
        error = WorkerLost(f"{self.record.worker_id} is lost ({reason})")
        self.over = True
        self._mailbox.send_last((self, LegEnded(error=error, answered=False)))
        self.cancel()

    async def ended(self) -> None:
        """Wait until the stream is over and its task gone."""
        if not self._task.done():
            await asyncio.wait((self._task,))

    async def _read(self) -> None:
        try:
            while (event := await self._call.read()) is not END_OF_STREAM:
                self._note(event)
                mail = (self, event)
                if not self._mailbox.try_send(mail):
                    await self._mailbox.send(mail)
            ended = LegEnded(error=None)
        except grpc.aio.AioRpcError as error:
            trailers: Any = error.trailing_metadata()  # pairs; the stubs say otherwise
            answered = any(key == _DETAILS_KEY for key, _ in trailers or ())
            failure = from_worker_error(error, self.record.worker_id)
            blames_exporter = answered and _about_exporter(failure, error.code())
            ended = LegEnded(error=failure, answered=answered, blames_exporter=blames_exporter)
        except asyncio.CancelledError:
            if self._task.cancelling():
                raise
            ended = LegEnded(error=WorkerLost(f"the connection to {self.record.worker_id} was closed"), answered=False)
        self.over = True
        self._mailbox.send_last((self, ended))

    def late_tokens(self, event: Event) -> int:
        """Return how many tokens of ``event`` nobody wants any more."""
        if not self.fenced or isinstance(event, LegEnded):
            return 0
        if isinstance(event, worker_pb2.PrefillEvent):
            return int(event.HasField("first_token"))
        return len(event.tokens.token_ids)

    def _note(self, event: worker_pb2.PrefillEvent | worker_pb2.DecodeEvent) -> None:
        """Remember what must be known even if nobody reads the mailbox any more."""
        what = event.WhichOneof("event")
        if what == "started":
            self.started = True
        elif what == "kept" and isinstance(event, worker_pb2.DecodeEvent):
            self.kept_blocks = event.kept.blocks


def _about_exporter(failure: BatonError, code: grpc.StatusCode) -> bool:
    """Say whether a decode worker's failure is about its peer. A fault of its own code is INTERNAL."""
    peer_lost = isinstance(failure, WorkerLost) and code is grpc.StatusCode.UNAVAILABLE
    return peer_lost or isinstance(failure, ExportGone | TransferFailed)
