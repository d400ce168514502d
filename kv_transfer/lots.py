"""Lots of blocks: what travels in one call of a transport (see `kv_transfer.transport`).

`send_each` and `receive_each` make lots of single messages, for a transport that has nothing better.
"""

import asyncio
from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

Landed: TypeAlias = Callable[[Sequence[int]], None]
"""Hears of places in a lot whose blocks have come."""
Post: TypeAlias = Callable[[Any, int], "Future[None]"]
"""Posts one message: buffer and tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lot:
    """Blocks of one memory: row ``indices[place]`` of ``rows`` travels under tag ``tag + numbers[place]``."""

    rows: Any
    """The memory as a matrix of bytes, a row for each block (see `BlockMemory.rows`)."""
    indices: Sequence[int]
    tag: int
    numbers: Sequence[int]
    """All different, none negative."""

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.indices)


def send_each(send: Post, lot: Lot) -> "Future[None]":
    """Send ``lot``, each block by ``send``."""
    return all_done(_post_each(send, lot))


def receive_each(receive: Post, abort: Callable[[], None], lot: Lot, landed: Landed) -> "Future[None]":
    """Receive ``lot``, each block by ``receive``; ``abort`` cancels what the peer has posted."""
    receives = _post_each(receive, lot)

    def hear(place: int, one: "Future[None]") -> None:
        if one.exception() is None:
            landed((place,))
        else:
            abort()

    for place, one in enumerate(receives):
        one.add_done_callback(partial(hear, place))
    return all_done(receives)


def _post_each(post: Post, lot: Lot) -> "list[Future[None]]":
    return [post(lot.rows[index], lot.tag + number) for index, number in zip(lot.indices, lot.numbers, strict=True)]


def all_done(parts: "list[Future[None]]") -> "Future[None]":
    """Return a future that is done when all ``parts`` are, with the first error among them."""
    done: Future[None] = asyncio.get_running_loop().create_future()
    left = len(parts)

    def count(_one: "Future[None]") -> None:
        nonlocal left
        left -= 1
        if left == 0 and not done.done():
            settle(done, next((error for part in parts if (error := part.exception()) is not None), None))

    for part in parts:
        part.add_done_callback(count)
    return done


def settle(done: "Future[None]", error: BaseException | None) -> None:
    """End ``done``, unless somebody has cancelled it."""
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
        done.exception()  # asyncio need not complain when nobody waits any more: after an abort that is normal
