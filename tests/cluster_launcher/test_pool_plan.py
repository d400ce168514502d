"""What must start and what must go, and when a worker is given up."""

from hypothesis import given
from hypothesis import strategies as st

from cluster_core.identity import Role
from cluster_launcher.pool_plan import plan_pool, worker_name, worker_number
from cluster_launcher.restart_budget import RestartBudget

NUMBERS = st.sets(st.integers(0, 20), max_size=12)


@given(numbers=NUMBERS, wanted=st.integers(0, 20))
def test_the_plan_brings_the_pool_to_its_size(numbers: set[int], wanted: int) -> None:
    running = {worker_name(Role.DECODE, number) for number in numbers}
    change = plan_pool(Role.DECODE, running, wanted)
    assert len((running | set(change.start)) - set(change.stop)) == wanted
    assert not change.start or not change.stop
    assert set(change.stop) <= running
    assert not set(change.start) & running


@given(numbers=NUMBERS, wanted=st.integers(0, 20))
def test_the_newest_go_first(numbers: set[int], wanted: int) -> None:
    running = {worker_name(Role.PREFILL, number) for number in numbers}
    stopped = [worker_number(name) for name in plan_pool(Role.PREFILL, running, wanted).stop]
    assert stopped == sorted(numbers, reverse=True)[: len(stopped)]


def test_free_numbers_are_filled_first() -> None:
    assert plan_pool(Role.DECODE, ["decode-1", "decode-10"], 4).start == ("decode-0", "decode-2")  # type: ignore[list-item]  # plain names


def test_ten_is_newer_than_nine() -> None:
    running = [worker_name(Role.DECODE, number) for number in (9, 10)]
    assert plan_pool(Role.DECODE, running, 1).stop == ("decode-10",)


def test_the_unwell_go_before_the_newest() -> None:
    running = [worker_name(Role.DECODE, number) for number in (0, 1, 2)]
    assert plan_pool(Role.DECODE, running, 1, {running[0]}).stop == ("decode-0", "decode-2")


def test_a_worker_may_restart_within_its_budget() -> None:
    budget = RestartBudget(restarts=2, window_s=10.0)
    assert budget.observe(total=0, now_s=0.0)
    assert budget.observe(total=2, now_s=1.0)
    assert not budget.observe(total=3, now_s=2.0)


def test_old_restarts_are_forgiven() -> None:
    budget = RestartBudget(restarts=1, window_s=10.0)
    assert budget.observe(total=1, now_s=0.0)
    assert budget.observe(total=2, now_s=11.0)
    assert budget.observe(total=2, now_s=30.0)
