"""An importer that is attached to an export: what is to be told to it, and the sends that it asked for."""

import asyncio
from dataclasses import replace

from cluster_core.errors import LegFailed
from cluster_core.handoff import BlocksSealed, ExporterMessage, ExportFailed, ExportFinished, ExportOpened
from kv_transfer.inbox import Inbox
from kv_transfer.stream_times import StreamTimes
from kv_transfer.transport import Peer
from kv_transfer.wire import Wire


class Listener:
    """One importer's stream. ``answers`` ends with None, and once it has ended nothing more is put there."""

    def __init__(self, peer: Peer, times: StreamTimes) -> None:
        self.peer = peer
        self.times = times
        self.wire: Wire | None = None
        """How blocks are packed for it; None: they travel as they are."""
        self.answers: Inbox[ExporterMessage | None] = Inbox()
        self.sending: set[asyncio.Task[None]] = set()
        self._ended = False

    def tell(self, message: ExporterMessage, filled_at_s: float) -> None:
        """Put ``message`` on the stream; the first one names the format in which blocks will come.

        Later ones tell how long after it blocks were last filled, which was at ``filled_at_s``. That the export is
        finished goes with the last blocks' references, if they have not been sent yet. Without effect once the stream
        has been ended.
        """
        if self._ended:
            return
        match message:
            case ExportOpened():
                format_ = "" if self.wire is None else self.wire.format
                message = replace(message, wire_format=format_, waited_s=self.times.answered())
            case BlocksSealed():
                filled_s = self.times.since_answer(filled_at_s)
                message = replace(message, filled_s=filled_s, pulled_s=self.times.pulled_s)
            case ExportFinished():
                message = self._with_last(replace(message, ended_s=self.times.since_answer(filled_at_s)))
            case _:
                pass
        self.answers.put(message)

    def _with_last(self, finished: ExportFinished) -> ExporterMessage:
        last = self.answers.take_last()
        if isinstance(last, BlocksSealed):
            return replace(last, finished=finished)
        if last is not None:
            self.answers.put(last)
        return finished

    async def next_answer(self) -> ExporterMessage | None:
        """Wait for what is to be said next; None at the end."""
        await self.answers.wait()
        return self.answers.take()

    def end(self, error: LegFailed | None = None) -> None:
        """End the stream after what is queued, and after ``error`` if there is one. Without effect the second time."""
        if self._ended:
            return
        self._ended = True
        if error is not None:
            self.answers.put(ExportFailed(reason=str(error)))
        self.answers.put(None)
