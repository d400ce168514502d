"""What carries NIXL's messages between two processes, as it is found out. Run by `nixl_contract`."""

import asyncio
import sys
from asyncio.subprocess import PIPE

import pytest

from kv_transfer.link_probe import LinkProbe
from kv_transfer.settings import TransferSettings
from kv_transfer.transport import make_transport
from tests.kv_transfer.probes import parts_of
from tests.kv_transfer.test_link_probe import EXPORTER, TIMEOUT_S, PipeConversation, tcp_connection


@pytest.mark.parametrize(("ucx_tls", "lane"), [("", "shared memory"), ("self,tcp", "tcp")])
async def test_nixl_by_tcp_is_seen_and_told(ucx_tls: str, lane: str) -> None:
    settings = TransferSettings(transport="nixl", ucx_tls=ucx_tls)
    transport = make_transport(settings)
    module = "tests.kv_transfer.probe_process"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, ucx_tls, "nixl", stdin=PIPE, stdout=PIPE
    )
    await transport.start()
    with tcp_connection() as (sending, receiving):
        sending.sendall(b"a worker has connections")
        receiving.recv(1)
        async with asyncio.timeout(TIMEOUT_S):
            conversation = PipeConversation(process)
            life = await conversation.read()
            report = await LinkProbe(parts_of("decode-0", transport, settings)).measure(EXPORTER, life, conversation)
            conversation.end()
            assert await process.wait() == 0
    await transport.close()
    assert (report.lane, report.expected_lane) == (lane, "shared memory")
    assert ("blocks go by tcp" in report.warning) == (lane == "tcp")
