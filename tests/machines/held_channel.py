"""A hand-over's stream whose messages arrive when the test says so: late, twice, or never."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from cluster_core.errors import WorkerLost
from cluster_core.handoff import AcceptBlocks, BlocksSealed, ExporterMessage, ImporterMessage
from kv_transfer.exporter import Exporter

END = None


class HeldChannel:
    """See `kv_transfer.import_job.HandoffChannel`; ``requests`` and ``answers`` are on their way."""

    def __init__(self) -> None:
        self.requests: deque[ImporterMessage | None] = deque()
        self.answers: deque[ExporterMessage | None] = deque()
        self._at_exporter: asyncio.Queue[ImporterMessage | None] = asyncio.Queue()
        self._at_importer: asyncio.Queue[ExporterMessage | None] = asyncio.Queue()
        self._serving: asyncio.Task[None] | None = None
        self._broken = False

    async def send(self, message: ImporterMessage) -> None:
        if self._broken:
            reason = "the stream is broken"
            raise WorkerLost(reason)
        self.requests.append(message)
        if isinstance(message, AcceptBlocks):
            self.requests.append(END)

    async def receive(self) -> ExporterMessage:
        message = await self._at_importer.get()
        if message is END:
            reason = "the stream ended"
            raise WorkerLost(reason)
        return message

    def deliver_request(self) -> None:
        self._at_exporter.put_nowait(self.requests.popleft())

    def deliver_answer(self, *, again: bool) -> None:
        """Let the next answer arrive; ``again``: it will arrive once more, where the protocol allows that."""
        answer = self.answers[0] if again and isinstance(self.answers[0], BlocksSealed) else self.answers.popleft()
        self._at_importer.put_nowait(answer)

    def serve(self, exporter: Exporter) -> None:
        """Be the exporter's end of the stream."""
        self._serving = asyncio.get_running_loop().create_task(self._serve(exporter))

    async def _serve(self, exporter: Exporter) -> None:
        async for message in exporter.serve(self._requests()):
            self.answers.append(message)
        self.answers.append(END)

    async def _requests(self) -> AsyncIterator[ImporterMessage]:
        while (message := await self._at_exporter.get()) is not END:
            yield message

    def cancel(self) -> None:
        """End the call at once, as a cancel does: what is on its way is lost."""
        self.lose_exporter(silently=True)

    def lose_exporter(self, *, silently: bool) -> None:
        """Let the exporter's process die; ``silently``: the importer is not told."""
        self.requests.clear()
        self.answers.clear()
        if self._serving is not None:
            self._serving.cancel()
        self._broken = True
        if not silently:
            self._at_importer.put_nowait(END)
