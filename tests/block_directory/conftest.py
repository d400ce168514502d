from collections.abc import AsyncIterator, Iterator

import pytest

from block_directory.directory import BlockDirectory
from block_directory.embedded import EmbeddedServer
from block_directory.memory_directory import MemoryDirectory
from block_directory.redis_directory import RedisDirectory
from block_directory.settings import DirectorySettings
from tests.block_directory.samples import quick_settings


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """One real server for all tests that leave it alive."""
    server = EmbeddedServer(DirectorySettings())
    yield server.start()
    server.stop()


@pytest.fixture
def settings() -> DirectorySettings:
    """Quick settings, and a cluster name that no other test has."""
    return quick_settings()


@pytest.fixture(params=["memory", "redis"])
async def directory(request: pytest.FixtureRequest, settings: DirectorySettings) -> AsyncIterator[BlockDirectory]:
    """Each implementation of the contract."""
    made: BlockDirectory
    if request.param == "memory":
        made = MemoryDirectory(settings)
    else:
        made = RedisDirectory(request.getfixturevalue("server_url"), settings)
    yield made
    await made.close()
