import inspect
from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from cluster_core.sampling import Sampling
from cluster_core.workers import WorkerLoad
from simulation.quick_values import quick_init, quick_values


@dataclass(frozen=True, slots=True)
class Sample:
    """Every kind of field."""

    first: int
    second: int = 2
    list_of: list[int] = field(default_factory=list)
    set_later: int = field(init=False)
    constant: int = field(init=False, default=7)
    named: str = field(default="x", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "set_later", self.first + self.second)


def quick_sample(*args: object, **named: object) -> Sample:
    sample = object.__new__(Sample)
    quick_init(Sample)(sample, *args, **named)
    return sample


def test_a_quick_value_equals_the_usual_one() -> None:
    assert quick_sample(1) == Sample(1)
    assert quick_sample(1, 3, [4], named="y") == Sample(1, 3, [4], named="y")
    assert quick_sample(1).list_of is not quick_sample(1).list_of


def test_the_parameters_are_the_same() -> None:
    usual, quick = (inspect.signature(init).parameters for init in (Sample.__init__, quick_init(Sample)))
    assert [(each.name, each.kind) for each in usual.values()] == [(each.name, each.kind) for each in quick.values()]


def test_the_products_values_are_quick_within_the_block_and_as_they_were_after_it() -> None:
    usual = WorkerLoad.__init__
    with quick_values():
        assert WorkerLoad.__init__ is not usual
        quick = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=1, max_tokens=2, stop_token_ids=frozenset())
        load = WorkerLoad(waiting_requests=3)
    assert WorkerLoad.__init__ is usual
    assert load == WorkerLoad(waiting_requests=3)
    assert quick.plain
    assert quick == Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=1, max_tokens=2, stop_token_ids=frozenset())
    with pytest.raises(FrozenInstanceError):
        load.waiting_requests = 4  # type: ignore[misc]  # what the test is about
