"""An importer that is attached to an export: what is to be told to it, and the sends that it asked for."""

import asyncio
from dataclasses import replace

from cluster_core.errors import LegFailed
from cluster_core.handoff import BlocksSealed, ExporterMessage, ExportFailed, ExportFinished, ExportOpened
from kv_transfer.inbox import Inbox
from kv_transfer.transport import Peer
from kv_transfer.wire import Wire


class Listener:
    """One importer's stream. ``answers`` ends with None."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.wire: Wire | None = None
        """How blocks are packed for it; None: they travel as they are."""
        self.answers: Inbox[ExporterMessage | None] = Inbox()
        self.sending: set[asyncio.Task[None]] = set()

    def tell(self, message: ExporterMessage) -> None:
        """Put ``message`` on the stream; the first one names the format in which blocks will come.

        That the export is finished goes with the last blocks' references, if they have not been sent yet.
        """
        if isinstance(message, ExportOpened) and self.wire is not None:
            message = replace(message, wire_format=self.wire.format)
        if isinstance(message, ExportFinished) and (last := self.answers.take_last()) is not None:
            if isinstance(last, BlocksSealed):
                message = replace(last, finished=message)
            else:
                self.answers.put(last)
        self.answers.put(message)

    async def next_answer(self) -> ExporterMessage | None:
        """Wait for what is to be said next; None at the end."""
        await self.answers.wait()
        return self.answers.take()

    def end(self, error: LegFailed | None = None) -> None:
        """End the stream after what is queued, and after ``error`` if there is one."""
        if error is not None:
            self.answers.put(ExportFailed(reason=str(error)))
        self.answers.put(None)
