"""A lender on an engine of its own: fills the targets of a fetch as far as it is told to, when it is told to."""

import asyncio
from collections.abc import Sequence

from cluster_core.handoff import FetchJob, FetchReport, FetchSource
from cluster_core.hash_chain import chain_hashes
from cluster_core.identity import Incarnation, WorkerId
from inference_engine.step import SequenceSlice, StepPlan
from tests.fake_engine import FAKE_LAYOUT, GREEDY, FakeEngine
from tests.worker_orders import ROOT

LENDER = WorkerId("decode-7")


def source_of(blocks: int) -> FetchSource:
    return FetchSource(worker_id=LENDER, incarnation=Incarnation(7), address="there:1", blocks=blocks, patience_s=1.0)


class FakeLender:
    """Calls are recorded in ``jobs``; each waits for ``go``. Every block of ``prompts`` is known."""

    def __init__(self, engine: FakeEngine, *prompts: Sequence[int]) -> None:
        self.go = asyncio.Event()
        self.gives = 1000
        """At most so many blocks of each job."""
        self.failure = ""
        self.jobs: list[FetchJob] = []
        self._engine = engine
        self._prompts = prompts

    async def fetch(self, job: FetchJob) -> FetchReport:
        self.jobs.append(job)
        await self.go.wait()
        moved = min(self.gives, len(job.targets))
        peer = FakeEngine(len(job.hashes))
        part = SequenceSlice(token_ids=self._tokens(job), start=0, block_table=range(len(job.hashes)), draw=GREEDY)
        peer.step(StepPlan(slices=(part,)))
        for place, target in enumerate(job.targets[:moved]):
            self._engine.memory.buffer(target)[:] = peer.memory.buffer(job.first + place)
        return FetchReport(
            lender=job.source.worker_id,
            asked_blocks=len(job.targets),
            moved_blocks=moved,
            moved_bytes=moved * FAKE_LAYOUT.block_bytes,
            transfer_s=0.01,
            elapsed_s=0.012,
            failure=self.failure,
        )

    def _tokens(self, job: FetchJob) -> Sequence[int]:
        size = FAKE_LAYOUT.block_size_tokens
        for prompt in self._prompts:
            if tuple(chain_hashes(ROOT, prompt, size)[: len(job.hashes)]) == job.hashes:
                return prompt[: len(job.hashes) * size]
        message = "no such prompt"
        raise AssertionError(message)


async def settle() -> None:
    """Let tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)
