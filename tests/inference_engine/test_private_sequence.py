"""A sequence some of whose blocks came rounded leaves nothing that another request could find."""

from cluster_core.holds import RequestHold
from cluster_core.identity import Attempt, RequestId
from inference_engine.block_pool import BlockPool
from inference_engine.sequence import TokenSequence

TOKENS = list(range(14))


def make(pool: BlockPool, name: str) -> TokenSequence:
    hold = RequestHold(RequestId(name), Attempt(1))
    return TokenSequence(pool=pool, hold=hold, root=b"root", token_ids=TOKENS, block_size_tokens=4)


def read(sequence: TokenSequence) -> None:
    sequence.reserve(len(sequence.token_ids))
    sequence.advance(sequence.pending)


def test_what_was_cached_before_stays_and_nothing_is_added() -> None:
    pool = BlockPool(20)
    other = make(pool, "other")
    other.token_ids = TOKENS[:4]
    read(other)
    other.give_back()
    sequence = make(pool, "rounded")
    assert len(sequence.attach_cached(12)) == 1
    sequence.private = True
    read(sequence)
    for token in range(20, 27):
        sequence.append(token)
        read(sequence)
    sequence.give_back()
    assert pool.counts().cached == 1
    pool.audit()


def test_a_fork_is_as_private_and_a_new_beginning_is_not() -> None:
    pool = BlockPool(20)
    sequence = make(pool, "rounded")
    sequence.private = True
    read(sequence)
    fork, _ = sequence.fork(RequestHold(RequestId("fork"), Attempt(1)))
    assert fork.private
    sequence.give_back()
    assert pool.counts().cached == 0
    read(sequence)
    assert not sequence.private
    sequence.give_back()
    fork.give_back()
    assert pool.counts().cached == 3
