"""A decode scheduler on the fake engine, stepped by hand: no loop, no thread, no network."""

import asyncio

from cluster_core.handoff import HandoffReport
from cluster_core.hash_chain import chain_hashes
from cluster_core.holds import RequestHold
from cluster_core.identity import Incarnation, WorkerId
from cluster_rpc.order_checks import Capacity
from cluster_rpc.worker_messages import PrefillOrigin
from decode_worker.scheduler import DecodeScheduler, SchedulerParts
from decode_worker.settings import DecodeSettings
from decode_worker.speculation import Speculation
from inference_engine.block_pool import BlockPool
from inference_engine.draft_model import DraftingEngine
from inference_engine.step import SequenceSlice, StepPlan
from kv_transfer.import_job import Imported, ImportJob
from tests.fake_engine import FAKE_LAYOUT, FAKE_MODEL, GREEDY, FakeEngine
from tests.worker_orders import ROOT

ORIGIN = PrefillOrigin(worker_id=WorkerId("prefill-0"), incarnation=Incarnation(5), address="nowhere:1")


class FakeSource:
    """Prefills on an engine of its own and copies the blocks, when ``go`` is set. ``prompts`` tells it the prompts."""

    def __init__(self, engine: FakeEngine) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.jobs: list[ImportJob] = []
        self.landed: frozenset[int] = frozenset()
        """Positions that arrive, checked, whatever becomes of the others."""
        self.rounded = False
        self.fork_token_ids: tuple[int, ...] = ()
        """First tokens of the other choices, which a prefill worker draws with the first."""
        self._engine = engine

    async def __call__(self, origin: PrefillOrigin, job: ImportJob) -> Imported:
        assert origin == ORIGIN
        self.jobs.append(job)
        if landed := self.landed - job.kept:
            self._bring(job, landed)
            job.remains.verified = landed
        await self.go.wait()
        if self.error is not None:
            raise self.error
        first = self._bring(job, frozenset(range(len(job.targets))) - job.kept)
        moved = len(job.targets) - len(job.kept)
        report = HandoffReport(
            moved_blocks=moved,
            kept_blocks=len(job.kept),
            moved_bytes=moved * FAKE_LAYOUT.block_bytes,
            messages=moved,
            transfer_s=0.1,
            exposed_s=0.01,
            transport="fake",
            exact_bytes=moved * FAKE_LAYOUT.block_bytes,
        )
        return Imported(first_token_id=first, fork_token_ids=self.fork_token_ids, report=report, rounded=self.rounded)

    def _bring(self, job: ImportJob, positions: frozenset[int]) -> int:
        """Fill the targets at ``positions``, those that the prompt has; return the first token."""
        prompt = self.prompts[job.request_id]
        assert list(job.hashes) == chain_hashes(ROOT, prompt, FAKE_LAYOUT.block_size_tokens)
        peer = FakeEngine(len(job.targets))
        part = SequenceSlice(token_ids=prompt, start=0, block_table=range(len(job.targets)), draw=GREEDY)
        (first,) = peer.step(StepPlan(slices=(part,))).slices[0].token_ids
        for position, target in enumerate(job.targets):
            if position in positions:
                self._engine.memory.buffer(target)[:] = peer.memory.buffer(position)
        return first


class Bench:
    """Everything a test of the scheduler touches."""

    def __init__(
        self,
        total_blocks: int = 32,
        settings: DecodeSettings | None = None,
        *,
        speculation: Speculation | None = None,
        draft: FakeEngine | None = None,
    ) -> None:
        self.now_s = 100.0
        self.engine = FakeEngine(total_blocks)
        self.pool = BlockPool(total_blocks)
        self.source = FakeSource(self.engine)
        self.changes = 0
        capacity = Capacity(
            model=FAKE_MODEL,
            layout=FAKE_LAYOUT,
            total_blocks=total_blocks,
            max_waiting=(settings or DecodeSettings()).max_waiting,
        )
        parts = SchedulerParts(
            pool=self.pool,
            capacity=capacity,
            source=self.source,
            settings=settings or DecodeSettings(),
            copy_block=self.engine.memory.copy_block,
            speculation=speculation or Speculation(),
            clock=lambda: self.now_s,
        )
        self.scheduler = DecodeScheduler(parts, self._changed)
        self._stepping = self.engine if draft is None else DraftingEngine(self.engine, draft)

    def step(self) -> bool:
        """Run one step; False when there was nothing to do."""
        plan = self.scheduler.next_step()
        if plan is None:
            return False
        held = (hold for hold in self.pool.holders() if not (isinstance(hold, RequestHold) and hold.fetching))
        assert self.scheduler.known_holds().issuperset(held), "the sweeper would take a hold away"
        self.scheduler.step_done(self._stepping.step(plan))
        self.pool.audit()
        return True

    def run(self) -> None:
        """Step until there is nothing to do."""
        while self.step():
            pass

    async def settle(self) -> None:
        """Let the import tasks run until they wait."""
        for _ in range(10):
            await asyncio.sleep(0)

    def _changed(self) -> None:
        self.changes += 1
