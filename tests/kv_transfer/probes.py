"""A worker's probe over a transport of its own, and a conversation with another one without gRPC."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from cluster_core.errors import BatonError
from cluster_core.identity import WorkerId, new_incarnation
from cluster_core.links import ProbeAnswer, ProbeQuestion
from kv_transfer.link_book import LinkBook
from kv_transfer.link_probe import LinkProbe, ProbeParts
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import Transport

BLOCK_BYTES = 65_536


class Memory:
    """A pool of two blocks, for its kind of memory alone."""

    block_bytes = BLOCK_BYTES

    def __init__(self) -> None:
        self.rows = np.zeros((2, BLOCK_BYTES), np.uint8)

    def buffer(self, index: int) -> Any:
        return self.rows[index]

    def clear_unused(self, index: int, tokens: int) -> None:
        raise NotImplementedError


def parts_of(name: str, transport: Transport, settings: TransferSettings | None = None) -> ProbeParts:
    settings = settings or TransferSettings()
    return ProbeParts(
        transport=transport,
        memory=Memory(),
        worker_id=WorkerId(name),
        incarnation=new_incarnation(),
        settings=settings,
        book=LinkBook(BLOCK_BYTES, settings),
    )


class DirectConversation:
    """Asks a probe of the same process. ``asked`` counts questions; after ``mute_from`` of them comes no answer."""

    def __init__(self, probe: LinkProbe, mute_from: int = 1 << 30) -> None:
        self.asked = 0
        self._mute_from = mute_from
        self._questions: asyncio.Queue[ProbeQuestion | None] = asyncio.Queue()
        self._answers: asyncio.Queue[ProbeAnswer | BaseException] = asyncio.Queue()
        self._answering = asyncio.create_task(self._answer(probe))

    async def ask(self, question: ProbeQuestion) -> ProbeAnswer:
        self.asked += 1
        if self.asked > self._mute_from:
            await asyncio.get_running_loop().create_future()
        self._questions.put_nowait(question)
        answer = await self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def close(self) -> None:
        self._questions.put_nowait(None)
        await self._answering

    async def _answer(self, probe: LinkProbe) -> None:
        try:
            async for answer in probe.answer(self._stream()):
                self._answers.put_nowait(answer)
        except BatonError as error:
            self._answers.put_nowait(error)

    async def _stream(self) -> AsyncIterator[ProbeQuestion]:
        while (question := await self._questions.get()) is not None:
            yield question
