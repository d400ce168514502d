"""Pairs of exporter and importer over each transport."""

from collections.abc import AsyncIterator

import pytest

from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.transport import Transport
from kv_transfer.ucx_transport import UcxTransport
from tests.kv_transfer.handover import SETTINGS
from tests.kv_transfer.pair import Pair, SwitchedTransport


@pytest.fixture(params=["loopback", "ucx"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    network = LoopbackNetwork()
    transports: list[Transport] = [
        LoopbackTransport(network) if request.param == "loopback" else UcxTransport(SETTINGS) for _ in range(2)
    ]
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
