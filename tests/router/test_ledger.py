"""What was given to a worker counts until its report tells of it."""

from cluster_core.identity import Attempt, RequestId, WorkerId
from router.cost_model import Assigned
from router.ledger import ARRIVAL_S, Ledger

WORKER = WorkerId("prefill-0")
GIVEN = Assigned(prefill_tokens=100, streams=1, blocks=7)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def key(number: int) -> tuple[RequestId, Attempt]:
    return RequestId(f"r{number}"), Attempt(1)


def test_an_assignment_counts_until_a_report_knows_of_it() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.assign(WORKER, key(1), GIVEN)
    assert ledger.assigned(WORKER) == GIVEN
    ledger.reported(WORKER)
    assert ledger.assigned(WORKER) == GIVEN, "a report that crossed the request on the wire"
    clock.now += ARRIVAL_S
    ledger.reported(WORKER)
    assert ledger.assigned(WORKER) == Assigned()


def test_what_ends_after_a_report_is_taken_off_it_until_the_next() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.assign(WORKER, key(1), GIVEN)
    clock.now += 1
    ledger.reported(WORKER)
    ledger.prefilled(WORKER, key(1))
    assert ledger.assigned(WORKER) == Assigned(prefill_tokens=-100)
    ledger.end(WORKER, key(1))
    assert ledger.assigned(WORKER) == Assigned(prefill_tokens=-100, streams=-1, blocks=-7)
    ledger.reported(WORKER)
    assert ledger.assigned(WORKER) == Assigned()
    assert len(ledger) == 0


def test_what_ends_before_any_report_leaves_nothing() -> None:
    ledger = Ledger(Clock())
    ledger.assign(WORKER, key(1), GIVEN)
    ledger.prefilled(WORKER, key(1))
    assert ledger.assigned(WORKER) == Assigned(streams=1, blocks=7)
    ledger.end(WORKER, key(1))
    ledger.end(WORKER, key(1))
    assert ledger.assigned(WORKER) == Assigned()


def test_a_life_that_is_over_is_forgotten_whole() -> None:
    ledger = Ledger(Clock())
    ledger.assign(WORKER, key(1), GIVEN)
    ledger.forget(WORKER)
    ledger.end(WORKER, key(1))
    assert ledger.assigned(WORKER) == Assigned()
