"""What is said to an importer, and that nothing undoes the end of its stream."""

import asyncio
from dataclasses import replace

import pytest

from cluster_core.errors import TransferFailed
from cluster_core.handoff import BlocksSealed, ExporterMessage, ExportFailed, ExportFinished
from kv_transfer.listener import Listener
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.stream_times import StreamTimes

NOW_S = 100.0
SEALED = BlocksSealed(blocks=())
FINISHED = ExportFinished(first_token_id=7)


@pytest.fixture
async def listener() -> Listener:
    transport = LoopbackTransport(LoopbackNetwork())
    await transport.start()
    return Listener(await transport.connect(transport.address), StreamTimes(lambda: NOW_S))


async def all_answers(listener: Listener) -> list[ExporterMessage]:
    answers = []
    async with asyncio.timeout(5.0):
        while (answer := await listener.next_answer()) is not None:
            answers.append(answer)
    return answers


async def test_the_end_of_the_prefill_goes_with_the_last_blocks(listener: Listener) -> None:
    listener.tell(SEALED, NOW_S)
    listener.tell(FINISHED, NOW_S)
    listener.end()
    assert await all_answers(listener) == [replace(SEALED, finished=FINISHED)]


async def test_a_prefill_that_ends_in_the_turn_of_a_failed_send_leaves_the_stream_ended(listener: Listener) -> None:
    listener.tell(SEALED, NOW_S)
    listener.end(TransferFailed("the importer's memory is gone"))
    listener.tell(FINISHED, NOW_S)
    assert await all_answers(listener) == [SEALED, ExportFailed(reason="the importer's memory is gone")]


async def test_what_is_said_after_the_end_of_an_empty_stream_is_not_sent(listener: Listener) -> None:
    listener.end()
    listener.tell(FINISHED, NOW_S)
    listener.end(TransferFailed("late"))
    assert await all_answers(listener) == []
    assert not listener.answers
