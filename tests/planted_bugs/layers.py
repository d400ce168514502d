"""What catches bugs. A layer is told how long to look, and raises when something is wrong."""

import asyncio

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from inference_engine.engine_loop import EngineLoop
from tests.fake_engine import FakeEngine
from tests.inference_engine.test_engine_loop import CountedWork
from tests.machines import histories
from tests.machines.block_pool import BlockPoolMachine
from tests.machines.directory import DirectoryMachine
from tests.machines.handover import HandoverMachine
from tests.machines.request_flow import RequestFlowMachine
from tests.machines.token_stream import TokenStreamMachine


def _run(machine: type[RuleBasedStateMachine], effort: settings) -> None:
    run_state_machine_as_test(machine, settings=effort)


def block_pool_machine(effort: settings) -> None:
    _run(BlockPoolMachine, effort)


def directory_machine(effort: settings) -> None:
    _run(DirectoryMachine, effort)


def handover_machine(effort: settings) -> None:
    _run(HandoverMachine, effort)


def token_stream_machine(effort: settings) -> None:
    _run(TokenStreamMachine, effort)


def request_flow_machine(effort: settings) -> None:
    _run(RequestFlowMachine, effort)


def handover_history_of_two_attempts(_effort: settings) -> None:
    histories.next_attempt_while_the_last_one_still_receives()


def handover_history_of_two_leases(_effort: settings) -> None:
    histories.lease_that_ends_behind_one_that_has_not_begun()


def directory_history_of_a_restart(_effort: settings) -> None:
    histories.restart_that_cannot_tell_its_blocks()


def directory_history_of_an_empty_server(_effort: settings) -> None:
    histories.empty_server_after_many_events()


def engine_loop_scenario(_effort: settings) -> None:
    """Let an engine fail for good: whoever owns the loop must hear of it."""

    async def scenario() -> None:
        heard: list[bool] = []
        engine = FakeEngine(2)
        engine.failures = 2
        loop = EngineLoop(engine=engine, work=CountedWork(5), on_broken=lambda: heard.append(True))
        loop.start()
        assert loop._task is not None
        await asyncio.wait({loop._task})
        await asyncio.sleep(0)
        await loop.close()
        assert heard, "the engine's loop has ended and nobody was told"

    asyncio.run(scenario())
