"""The bounded queue between legs and writer."""

import asyncio

from router.mailbox import Mailbox


async def test_what_piled_up_is_taken_in_one_go() -> None:
    mailbox: Mailbox[int] = Mailbox(4)
    assert all(mailbox.try_send(number) for number in range(4))
    assert not mailbox.try_send(4)
    assert await mailbox.receive_all() == [0, 1, 2, 3]


async def test_a_receiver_is_woken_by_the_first_item() -> None:
    mailbox: Mailbox[int] = Mailbox(4)
    receiving = asyncio.create_task(mailbox.receive_all())
    await asyncio.sleep(0)
    mailbox.try_send(1)
    mailbox.try_send(2)
    assert await receiving == [1, 2]


async def test_a_sender_waits_for_room_and_keeps_its_order() -> None:
    mailbox: Mailbox[int] = Mailbox(2)
    got: list[int] = []

    async def send() -> None:
        for number in range(100):
            if not mailbox.try_send(number):
                await mailbox.send(number)

    sending = asyncio.create_task(send())
    while len(got) < 100:
        await asyncio.sleep(0)
        assert len(mailbox) <= 2
        got += await mailbox.receive_all()
    assert got == list(range(100))
    await sending


async def test_a_last_word_needs_no_room_and_a_cancelled_sender_or_receiver_no_care() -> None:
    mailbox: Mailbox[int] = Mailbox(1)
    mailbox.send_last(1)
    sending = asyncio.create_task(mailbox.send(2))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    mailbox.send_last(3)
    assert await mailbox.receive_all() == [1, 3]
    receiving = asyncio.create_task(mailbox.receive_all())
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    mailbox.try_send(4)
    assert await mailbox.receive_all() == [4]
