"""The bounded stream of one answer."""

import asyncio

import pytest

from cluster_core.errors import Cancelled
from decode_worker.answer_stream import AnswerStream, Finished, TokensWritten


def tokens(offset: int, *token_ids: int) -> TokensWritten:
    return TokensWritten(offset=offset, token_ids=token_ids)


async def test_tokens_that_wait_are_joined() -> None:
    stream = AnswerStream(10, lambda: None)
    stream.put(tokens(0, 1))
    stream.put(tokens(1, 2))
    stream.put(Finished(reason="length"))
    assert await stream.take() == tokens(0, 1, 2)
    assert await stream.take() == Finished(reason="length")


async def test_a_full_stream_has_room_again_at_half() -> None:
    rings: list[None] = []
    stream = AnswerStream(2, lambda: rings.append(None))
    stream.put(tokens(0, 1))
    assert not stream.full
    stream.put(tokens(1, 2))
    assert stream.full
    assert await stream.take() == tokens(0, 1, 2)
    assert not stream.full
    assert len(rings) == 1


async def test_an_error_comes_after_what_was_written() -> None:
    stream = AnswerStream(2, lambda: None)
    reader = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.put(tokens(0, 1))
    stream.fail(Cancelled("enough"))
    assert await reader == tokens(0, 1)
    with pytest.raises(Cancelled, match="enough"):
        await stream.take()
