"""Who is admitted next."""

from cluster_core.holds import RequestHold
from decode_worker.answer import Answer
from decode_worker.answer_stream import AnswerStream, TokensWritten
from decode_worker.waiting_room import LOOK_AHEAD, WaitingRoom
from inference_engine.block_pool import BlockPool
from inference_engine.sequence import TokenSequence
from tests.worker_orders import ROOT, make_order


def make_answer(arrival: int) -> Answer:
    order = make_order(f"r{arrival}", [1])
    hold = RequestHold(order.request_id, order.attempt)
    sequence = TokenSequence(pool=BlockPool(1), hold=hold, root=ROOT, token_ids=[1], block_size_tokens=4)
    stream = AnswerStream(1, lambda: None)
    return Answer(order=order, sequence=sequence, stream=stream, arrival=arrival, arrived_s=0.0)


def room_of(*answers: Answer) -> WaitingRoom:
    room = WaitingRoom(passing_s=1.0)
    for answer in answers:
        room.add(answer)
    return room


def test_the_oldest_is_first_even_when_it_came_back() -> None:
    old, young = make_answer(1), make_answer(2)
    room = room_of(young, old)
    assert room.admit(lambda _: True, 0.0) is old
    assert room.admit(lambda _: True, 0.0) is young
    assert room.admit(lambda _: True, 0.0) is None


def test_nobody_passes_a_request_that_has_been_blocked_for_long() -> None:
    big, small, smaller = make_answer(1), make_answer(2), make_answer(3)
    room = room_of(big, small, smaller)
    assert room.admit(lambda answer: answer is not big, 10.0) is small
    assert room.admit(lambda answer: answer is not big, 10.9) is smaller
    room.add(small)
    assert room.admit(lambda answer: answer is not big, 11.0) is None
    assert room.admit(lambda _: True, 11.0) is big


def test_an_answer_whose_reader_sleeps_does_not_block_the_others() -> None:
    sleeper, other = make_answer(1), make_answer(2)
    sleeper.stream.put(TokensWritten(offset=0, token_ids=(1,)))
    room = room_of(sleeper, other)
    assert room.admit(lambda _: True, 0.0) is other
    assert room.admit(lambda _: True, 0.0) is None


def test_the_search_for_one_that_fits_is_bounded() -> None:
    tried: list[Answer] = []

    def refuse(answer: Answer) -> bool:
        tried.append(answer)
        return False

    room = room_of(*(make_answer(arrival) for arrival in range(LOOK_AHEAD + 5)))
    assert room.admit(refuse, 0.0) is None
    assert len(tried) == LOOK_AHEAD
