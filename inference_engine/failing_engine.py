"""An engine whose steps a test can hold, slow or poison: put before the real one where failpoints are on."""

from cluster_core.failpoints import are_on, corrupts, hit
from inference_engine.engine_loop import Stepping
from inference_engine.step import StepPlan, StepResult
from inference_engine.step_faults import BrokenLogits


def with_failpoints(engine: Stepping, place: str) -> Stepping:
    """Return ``engine``, or, in a process that has failpoints, one that passes ``place`` before each of its steps."""
    return FailingEngine(engine, place) if are_on() else engine


class FailingEngine:
    """Passes failpoints in the engine's thread, which may wait while the process goes on."""

    def __init__(self, engine: Stepping, place: str) -> None:
        self._engine = engine
        self._place = place

    def step(self, plan: StepPlan) -> StepResult:
        """Compute as the engine does, or not. Raises what it raises, and `BrokenLogits` where these are poisoned."""
        hit(self._place)
        hit("engine.die_silently")
        hit("engine.slow")
        result = self._engine.step(plan)
        if corrupts("engine.nan"):
            raise BrokenLogits(tuple(range(len(plan.slices))))
        return result
