"""Each transport with a sender at its other end, and pairs of exporter and importer."""

from collections.abc import AsyncIterator, Iterator

import pytest

from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.transport import Transport
from tests.kv_transfer.pair import Pair, SwitchedTransport
from tests.kv_transfer.transport_sides import (
    KINDS,
    Sender,
    SenderHere,
    SenderProcess,
    has_own_process,
    new_transport,
    transport_of,
)


@pytest.fixture(params=["loopback", "host", "ucx"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    network = LoopbackNetwork()
    transports = [new_transport(request.param, network) for _ in range(2)]
    for transport in transports:
        await transport.start()
    one = Pair(*transports)
    yield one
    await one.importer.close()
    for transport in transports:
        await transport.close()


@pytest.fixture
async def switched() -> AsyncIterator[Pair]:
    network = LoopbackNetwork()
    prefill, decode = LoopbackTransport(network), SwitchedTransport(network)
    await prefill.start()
    await decode.start()
    one = Pair(prefill, decode)
    yield one
    await one.importer.close()
    await decode.close()
    await prefill.close()


@pytest.fixture(scope="module")
def lasting_processes() -> Iterator[dict[str, SenderProcess]]:
    processes: dict[str, SenderProcess] = {}
    yield processes
    for process in processes.values():
        process.kill()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network() -> LoopbackNetwork:
    return LoopbackNetwork()


@pytest.fixture
async def here(kind: str, network: LoopbackNetwork) -> AsyncIterator[Transport]:
    transport = new_transport(transport_of(kind), network)
    await transport.start()
    yield transport
    await transport.close()
    await transport.close()


@pytest.fixture
async def sender(
    kind: str, network: LoopbackNetwork, lasting_processes: dict[str, SenderProcess]
) -> AsyncIterator[Sender]:
    if has_own_process(kind):
        name = transport_of(kind)
        if name not in lasting_processes:
            lasting_processes[name] = SenderProcess(name)
        yield lasting_processes[name]
        return
    one = await _sender_here(kind, network)
    yield one
    await one.die()


@pytest.fixture
async def mortal(kind: str, network: LoopbackNetwork) -> AsyncIterator[Sender]:
    one: Sender = SenderProcess(transport_of(kind)) if has_own_process(kind) else await _sender_here(kind, network)
    yield one
    await one.die()


async def _sender_here(kind: str, network: LoopbackNetwork) -> SenderHere:
    transport = new_transport(transport_of(kind), network)
    await transport.start()
    return SenderHere(transport)
