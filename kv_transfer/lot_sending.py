"""How an exporter sends a lot that was pulled, and waits until its blocks are its own again."""

import asyncio
from asyncio import Future
from collections.abc import Callable
from functools import partial
from typing import Any

from cluster_core.errors import LegFailed, TransferFailed
from cluster_core.failpoints import are_on, reach
from kv_transfer.export_memory import ExportMemory
from kv_transfer.listener import Listener
from kv_transfer.lots import Lot, all_done
from kv_transfer.session import SendBlocks
from kv_transfer.wire import Wire


class LotSending:
    """One lot for one listener, which hears of failures. ``still_sealed`` fails an export whose blocks are others."""

    def __init__(
        self, listener: Listener, action: SendBlocks, still_sealed: Callable[[SendBlocks], bool], patience_s: float
    ) -> None:
        self._listener = listener
        self._action = action
        self._still_sealed = still_sealed
        self._patience_s = patience_s

    def start(self, blocks: ExportMemory) -> None:
        """Post the sends now: every hop of the event loop is time in which the importer waits."""
        if are_on() or self._listener.wire is not None:
            self._keep(asyncio.create_task(self._start_later(blocks)))
        elif (sent := self._post(blocks)) is not None:
            self._keep(asyncio.create_task(self._watch(sent)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._listener.sending.add(task)
        task.add_done_callback(self._listener.sending.discard)

    async def _start_later(self, blocks: ExportMemory) -> None:
        """Let a test stop the hand-over before it sends, or pack what is sent."""
        try:
            await reach("xfer.chunk")
        except LegFailed as error:
            self._listener.end(error)
            return
        wire = self._listener.wire
        sent = self._post(blocks) if wire is None else await self._post_packed(wire)
        if sent is not None:
            await self._watch(sent)

    async def _post_packed(self, wire: Wire) -> Future[None] | None:
        """Pack and send a few blocks at a time, so that some travel while others are packed."""
        numbered, sent = self._action.numbered, []
        for start in range(0, len(numbered), wire.lot_blocks):
            if not self._still_sealed(self._action):
                return None
            some = numbered[start : start + wire.lot_blocks]
            rows = wire.pack([block for _, block in some])
            lot = Lot(rows=rows, indices=range(len(some)), tag=self._action.tag, numbers=[number for number, _ in some])
            try:
                part = self._listener.peer.send_lot(lot)
            except LegFailed as error:
                self._listener.end(error)
                return None
            part.add_done_callback(partial(_give_back, wire, rows))
            sent.append(part)
            await asyncio.sleep(0)
        return all_done(sent)

    def _post(self, blocks: ExportMemory) -> Future[None] | None:
        if not self._still_sealed(self._action):
            return None
        numbered = self._action.numbered
        lot = Lot(
            rows=blocks.memory.rows,
            indices=[block.index for _, block in numbered],
            tag=self._action.tag,
            numbers=[number for number, _ in numbered],
        )
        try:
            return self._listener.peer.send_lot(lot)
        except LegFailed as error:
            self._listener.end(error)
            return None

    async def _watch(self, sent: Future[None]) -> None:
        _done, pending = await asyncio.wait({sent}, timeout=self._patience_s)
        try:
            if pending:
                message = f"blocks were not fetched within {self._patience_s} s"
                raise TransferFailed(message)
            sent.result()
        except LegFailed as error:
            self._listener.end(error)
        else:
            self._still_sealed(self._action)


def _give_back(wire: Wire, rows: Any, _sent: Future[None]) -> None:
    wire.give_back(rows)
