"""An importer that is attached to an export: what is to be told to it, and the sends that it asked for."""

import asyncio
from dataclasses import replace

from cluster_core.errors import LegFailed
from cluster_core.handoff import ExporterMessage, ExportFailed, ExportOpened
from kv_transfer.transport import Peer
from kv_transfer.wire import Wire


class Listener:
    """One importer's stream. ``answers`` ends with None."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.wire: Wire | None = None
        """How blocks are packed for it; None: they travel as they are."""
        self.answers: asyncio.Queue[ExporterMessage | None] = asyncio.Queue()
        self.sending: set[asyncio.Task[None]] = set()

    def tell(self, message: ExporterMessage) -> None:
        """Put ``message`` on the stream; the first one names the format in which blocks will come."""
        if isinstance(message, ExportOpened) and self.wire is not None:
            message = replace(message, wire_format=self.wire.format)
        self.answers.put_nowait(message)

    def end(self, error: LegFailed | None = None) -> None:
        """End the stream after what is queued, and after ``error`` if there is one."""
        if error is not None:
            self.answers.put_nowait(ExportFailed(reason=str(error)))
        self.answers.put_nowait(None)
