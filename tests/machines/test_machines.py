"""Runs the state machines: random histories of block pool, directory, hand-over, token stream and request."""

from collections.abc import Callable

import pytest

from tests.machines.block_pool import BlockPoolMachine
from tests.machines.directory import DirectoryMachine
from tests.machines.handover import HandoverMachine
from tests.machines.histories import HISTORIES
from tests.machines.machine_settings import machine_settings
from tests.machines.request_flow import RequestFlowMachine
from tests.machines.token_stream import TokenStreamMachine

TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = machine_settings()

TestDirectory = DirectoryMachine.TestCase
TestDirectory.settings = machine_settings()

TestHandover = HandoverMachine.TestCase
TestHandover.settings = machine_settings()

TestTokenStream = TokenStreamMachine.TestCase
TestTokenStream.settings = machine_settings()

TestRequestFlow = RequestFlowMachine.TestCase
TestRequestFlow.settings = machine_settings()


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: str(history.__name__))
def test_history(history: Callable[[], None]) -> None:
    history()
