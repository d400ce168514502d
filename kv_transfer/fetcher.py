"""The borrower's side of a fetch: an import that may bring less than it was to, and fails nobody.

It ends after the patience that its order names at the latest, since computing the same blocks is always possible. What
has come by then, or before the lender died, is kept: each block was checked by itself, and the first of them without a
gap are a prefix like any other. Only of a lender that sent a wrong thing nothing is kept.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias

from cluster_core.errors import LegFailed
from cluster_core.handoff import FetchJob, FetchReport, FetchSource
from kv_transfer.import_job import Imported, ImportJob
from kv_transfer.importer import Importer

Bring: TypeAlias = Callable[[FetchSource, ImportJob], Awaitable[Imported]]
"""Opens a stream to the lender, over which the importer runs the job. Raises as `Importer.run`."""


class Fetcher:
    """All fetches of one worker."""

    def __init__(self, importer: Importer, bring: Bring) -> None:
        self._importer = importer
        self._bring = bring

    async def fetch(self, job: FetchJob) -> FetchReport:
        """Fill the targets of ``job`` as far as the lender can; raises nothing.

        However it ends, and also when it is cancelled, a target keeps its writer hold while bytes may still land in it.
        """
        importer, source = self._importer, job.source
        began_s = importer.clock()
        lent = ImportJob(
            request_id=job.request_id,
            attempt=job.attempt,
            exporter=source.worker_id,
            exporter_incarnation=source.incarnation,
            targets=(0,) * job.first + job.targets,
            kept=frozenset(),
            hashes=job.hashes,
            first=job.first,
            lent=True,
        )
        failure, transfer_s = "", 0.0
        patience_s = min(source.patience_s, importer.settings.pull_timeout_s)
        try:
            async with asyncio.timeout(patience_s):
                imported = await self._bring(source, lent)
        except TimeoutError:
            failure = f"{source.worker_id} did not lend its blocks within {patience_s:.3g} s"
        except LegFailed as error:
            failure = str(error)
        else:
            transfer_s = imported.report.transfer_s
            beside_s = max(0.0, importer.clock() - began_s - transfer_s)
            importer.links.learn(source.worker_id, source.incarnation, replace(imported.report, exposed_s=beside_s))
        moved = 0
        while job.first + moved in lent.remains.verified:
            moved += 1
        return FetchReport(
            lender=source.worker_id,
            asked_blocks=len(job.targets),
            moved_blocks=moved,
            moved_bytes=moved * importer.memory.block_bytes,
            transfer_s=transfer_s,
            elapsed_s=importer.clock() - began_s,
            failure=failure,
        )
