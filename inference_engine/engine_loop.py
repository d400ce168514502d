"""The loop that turns a worker's plans into engine steps.

One task runs the loop on the event loop, where all state of a worker lives; the engine runs in one thread of its own.
So plans and results never need a lock, and while a step computes, requests come, go and stream::

    plan = work.next_step()          on the event loop; reserves blocks
    result = engine.step(plan)       in the engine's thread
    work.step_done(result)           on the event loop; appends tokens, seals blocks

Blocks that a running step writes must not be given back before the step is over: `StepWork` sees to that.

A thread cannot be ended from outside, so a step that never returns can only be noticed (`EngineLoop.step_age_s`) and
left to the end of the process, which must not wait for it (`cluster_rpc.worker_process.end_process`).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Protocol

from inference_engine.step import StepPlan, StepResult
from inference_engine.step_faults import BrokenLogits, NotDrawn, NothingAllowed

log = logging.getLogger(__name__)

FAILURES_UNTIL_BROKEN = 2
GIVE_WAY_S = 50e-6
"""How long the event loop's thread sleeps when it has handed a step to the engine's. Awake, it would keep the
interpreter until it has nothing to do, or for Python's 5 ms; asleep, it lets the step begin."""
CLOSE_PATIENCE_S = 10.0
"""How long closing waits for the step that computes."""


class Stepping(Protocol):
    """The one method of an engine that the loop calls, always from the same thread."""

    def step(self, plan: StepPlan) -> StepResult:
        """Compute the plan's slices and sample where asked."""
        ...


class StepWork(Protocol):
    """What a worker wants of its engine. All methods are called on the event loop, in turn."""

    def next_step(self) -> StepPlan | None:
        """Plan the next step, or return None when there is nothing to compute until the next `EngineLoop.wake`."""
        ...

    def step_done(self, result: StepResult) -> None:
        """Take the result of the step planned last."""
        ...

    def step_failed(self, error: Exception, places: frozenset[int] | None) -> None:
        """Fail requests of the step planned last, which raised, and give their blocks back.

        ``places`` are the slices at fault; None is all. The others keep what they had and are planned again.
        """
        ...


class EngineLoop:
    """Steps until closed. ``on_broken`` is called once, when the engine raised twice in a row or the work raised.

    ``thread`` runs the steps, one after the other; None: a thread of the loop's own.
    """

    def __init__(
        self,
        *,
        engine: Stepping,
        work: StepWork,
        on_broken: Callable[[], None],
        close_patience_s: float = CLOSE_PATIENCE_S,
        thread: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps = 0
        self._engine = engine
        self._work = work
        self._on_broken = on_broken
        self._thread = thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._gives_way = thread is None
        self._clock = clock
        self._close_patience_s = close_patience_s
        self._step: Future[StepResult] | None = None
        self._step_began_s = 0.0
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to step."""
        self._task = asyncio.create_task(self._run(), name="engine loop")
        self._task.add_done_callback(self._over)

    def wake(self) -> None:
        """Something changed: ask the work again."""
        self._woken.set()

    async def close(self) -> None:
        """Finish the step that computes now, and end. A step that takes longer than the patience is left to itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False)
        if self._step is not None and not self._step.done():
            ending = asyncio.wrap_future(self._step)
            ending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody waits for it
            await asyncio.wait({ending}, timeout=self._close_patience_s)
            if ending.cancel():
                log.error("an engine step has not ended for %.0f s: it is left to itself", self.step_age_s)

    @property
    def step_age_s(self) -> float:
        """How long the present step has been computing; 0 between steps."""
        return 0.0 if self._step is None or self._step.done() else self._clock() - self._step_began_s

    async def _run(self) -> None:
        failures = 0
        while failures < FAILURES_UNTIL_BROKEN:
            self._woken.clear()
            plan = self._work.next_step()
            if plan is None:
                await self._woken.wait()
                continue
            try:
                self._step_began_s = self._clock()
                self._step = self._begin(plan)
                result = await asyncio.wrap_future(self._step)
            except (BrokenLogits, NothingAllowed, NotDrawn) as error:
                log.error("some answers cannot go on: %s", error)  # noqa: TRY400  # nothing to learn from its trace
                self._work.step_failed(error, frozenset(error.places))
            except Exception as error:  # whatever a step raises ends its requests, not the worker
                log.exception("an engine step failed")
                failures += 1
                self._work.step_failed(error, None)
            else:
                failures = 0
                self.steps += 1
                self._work.step_done(result)
            await asyncio.sleep(0)
        log.critical("the engine failed %d times in a row: this worker ends", failures)

    def _begin(self, plan: StepPlan) -> Future[StepResult]:
        step = self._thread.submit(self._engine.step, plan)
        if self._gives_way:
            time.sleep(GIVE_WAY_S)
        return step

    def _over(self, task: asyncio.Task[None]) -> None:
        """Never stay silent: a worker whose loop has ended must not look alive."""
        if task.cancelled():
            return
        if task.exception() is not None:
            log.critical("planning failed, a mistake of ours: this worker ends", exc_info=task.exception())
        self._on_broken()
