"""The demo's configuration, and that it does not wait for a cluster that has died."""

import asyncio

import pytest

from cluster_core.errors import PartUnavailable
from cluster_launcher.demo_command import demo_configuration, while_serving


async def _die() -> None:
    message = "decode-0: gone"
    raise PartUnavailable(message)


async def _answer() -> str:
    await asyncio.sleep(0)
    return "told"


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_part_that_dies_ends_the_story_with_its_reason() -> None:
    with pytest.raises(PartUnavailable, match="decode-0: gone"):
        await asyncio.wait_for(while_serving(_die(), _for_ever()), timeout=5)


async def test_a_story_that_ends_leaves_nobody_watching() -> None:
    before = asyncio.all_tasks()
    assert await while_serving(_for_ever(), _answer()) == "told"
    assert asyncio.all_tasks() == before


def test_every_request_of_the_demo_is_handed_over() -> None:
    configuration = demo_configuration()
    assert configuration.router.placement == "split"
    assert configuration.router.port == 0
    assert configuration.cluster.name == "demo"
