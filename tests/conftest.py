"""What holds for every test."""

import gc

import pytest
from hypothesis import settings

from tests.distribution import ByUnit, rank_of

# Property tests run the same examples every time, however slow the machine is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what takes long."""
    items.sort(key=lambda item: rank_of(item.nodeid))


def pytest_collection_finish() -> None:
    """Let the collector of cycles overlook what was imported, which stays: a tenth of all tests' time went there."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByUnit:
    """Share the tests among the workers of pytest-xdist as `distribution` says, whatever --dist does."""
    config.option.loadscopereorder = False  # units begin in the order in which the tests were collected
    return ByUnit(config, log)
