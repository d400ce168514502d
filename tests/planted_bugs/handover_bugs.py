"""Mistakes in how blocks move from one worker to another."""

import hashlib
import itertools
from typing import Any

import pytest

from cluster_core.handoff import AcceptBlocks
from cluster_core.holds import LeaseHold
from cluster_core.identity import RequestId
from kv_transfer.export_session import ExporterSession, ExporterState
from kv_transfer.exporter import Export, Exporter
from kv_transfer.import_session import ImporterSession
from kv_transfer.importer import _Import
from kv_transfer.session import BlocksReady, ExporterAction, ExporterEvent, ImporterAction, SendBlocks


def sweep_that_stops_early(patch: pytest.MonkeyPatch) -> None:
    """B3: the sweeper stops at the first lease that has time left, as if all after it had more."""
    sweep = Exporter.sweep

    async def sweep_some(self: Exporter) -> int:
        every = self._exports
        now = self._clock()
        due = itertools.takewhile(lambda item: item[1].deadline is not None and item[1].deadline <= now, every.items())
        self._exports = dict(due)
        seen = set(self._exports)
        ended = await sweep(self)
        kept = self._exports
        self._exports = {name: export for name, export in every.items() if name not in seen or name in kept}
        return ended

    patch.setattr(Exporter, "sweep", sweep_some)


def sends_without_report(patch: pytest.MonkeyPatch) -> None:
    """B4: the exporter sends the blocks of a chunk and never says what it has sent."""
    ready = ExporterSession.TABLE[ExporterState.FEEDING, BlocksReady]

    def send_silently(session: ExporterSession, event: BlocksReady) -> list[ExporterAction]:
        return [action for action in ready(session, event) if isinstance(action, SendBlocks)]

    patch.setitem(ExporterSession.TABLE, (ExporterState.FEEDING, BlocksReady), send_silently)


def blocks_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    """B5: neither generations nor digests are compared, so the bytes of a block that was reassigned are accepted."""

    def believe_block(_export: Export, _action: SendBlocks) -> bool:
        return True

    def believe_bytes(_session: ImporterSession, _position: int) -> None:
        return None

    patch.setattr(Export, "_still_sealed", believe_block)
    patch.setattr(ImporterSession, "_compare", believe_bytes)


def accepted_under_a_local_name(patch: pytest.MonkeyPatch) -> None:
    """B7: what was accepted is freed under the name that the decode worker has for the request."""
    feed = Export._feed

    def feed_under_local_name(self: Export, event: ExporterEvent) -> None:
        lease = self.lease
        if isinstance(event, AcceptBlocks):
            self.lease = LeaseHold(RequestId(f"decode-0/{lease.request_id}"), lease.attempt)
        try:
            feed(self, event)
        finally:
            self.lease = lease

    patch.setattr(Export, "_feed", feed_under_local_name)


def tags_made_of_the_clients_id(patch: pytest.MonkeyPatch) -> None:
    """B8: transfers are told apart by the id that the client chose, so two tries at one request share their tags."""
    init = _Import.__init__

    def init_with_known_tags(self: _Import, importer: Any, job: Any, channel: Any) -> None:
        init(self, importer, job, channel)
        known = int.from_bytes(hashlib.sha256(job.request_id.encode()).digest()[:5], "big") << 16
        self._session._new_tag = itertools.count(known, 256).__next__

    patch.setattr(_Import, "__init__", init_with_known_tags)


def waits_for_ever(patch: pytest.MonkeyPatch) -> None:
    """B12: the importer waits without a deadline, so one message that was lost wedges it."""

    async def wait_for_event(self: _Import) -> None:
        await self._inbox.wait()

    patch.setattr(_Import, "_wait_for_event", wait_for_event)


def submits_again_what_was_submitted(patch: pytest.MonkeyPatch) -> None:
    """B14: when only a part of a pull fits, the whole of it is asked for again later."""
    pull = ImporterSession._pull

    def pull_again(self: ImporterSession) -> list[ImporterAction]:
        wanted = list(self._wanted)
        actions = pull(self)
        if actions and self._wanted:
            self._wanted = wanted
        return actions

    patch.setattr(ImporterSession, "_pull", pull_again)
