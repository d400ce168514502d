"""Mistakes in who is believed, who is told, and who is told to stop."""

import asyncio
from collections.abc import Sequence

import pytest

from block_directory.index import PrefixIndex, _Life
from block_directory.publisher import Publisher
from block_directory.replica import Replica
from cluster_core.identity import Attempt, Incarnation, WorkerId
from cluster_core.logprobs import TokenLogprobs
from inference_engine.engine_loop import EngineLoop
from router.legs import Leg
from router.token_log import TokenLog


def numbers_start_again(patch: pytest.MonkeyPatch) -> None:
    """B9: after an outage a publisher counts its events from the beginning."""
    enter = Publisher._enter

    async def enter_anew(self: Publisher) -> bool:
        self._sequence = 0
        return await enter(self)

    patch.setattr(Publisher, "_enter", enter_anew)


def blocks_kept_by_worker(patch: pytest.MonkeyPatch) -> None:
    """B10: the index knows workers and not their lives, so a restarted one still has what it lost."""
    life_of = PrefixIndex._life

    def life_of_worker(self: PrefixIndex, worker_id: WorkerId, incarnation: Incarnation) -> _Life | None:
        return self._current.get(worker_id) or life_of(self, worker_id, incarnation)

    def forget_numbers_only(self: Replica, incarnation: Incarnation) -> None:
        self._last.pop(incarnation, None)

    patch.setattr(PrefixIndex, "_life", life_of_worker)
    patch.setattr(Replica, "drop", forget_numbers_only)


def dead_engine_in_a_living_worker(patch: pytest.MonkeyPatch) -> None:
    """B13: the engine's loop has ended, and the worker goes on answering calls as if it had not."""

    def say_nothing(_loop: EngineLoop, _task: "asyncio.Task[None]") -> None:
        return None

    patch.setattr(EngineLoop, "_over", say_nothing)


def zombies_are_heard(patch: pytest.MonkeyPatch) -> None:
    """B15: the token log does not ask which attempt a token comes from."""
    accept = TokenLog.accept

    def accept_from_anybody(
        self: TokenLog, attempt: Attempt, offset: int, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()
    ) -> list[int]:
        del attempt
        return accept(self, self.attempt, offset, token_ids, logprobs)

    patch.setattr(TokenLog, "accept", accept_from_anybody)


def abandoned_calls(patch: pytest.MonkeyPatch) -> None:
    """B16: a leg that is given up is read no more, but its call is not cancelled: the worker writes on."""

    def stop_reading(self: Leg) -> None:
        self._task.cancel()

    patch.setattr(Leg, "cancel", stop_reading)
