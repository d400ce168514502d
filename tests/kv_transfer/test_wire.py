"""Blocks that are rounded on their way: when they are, what arrives, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster_core.errors import TransferFailed
from cluster_core.handoff import ExportOpened, OpenExport, OpenFetch, WireOffer
from cluster_core.identity import WorkerId
from cluster_core.links import LinkReport
from kv_transfer.loopback_transport import LoopbackNetwork, LoopbackTransport
from kv_transfer.settings import TransferSettings
from tests.kv_transfer.fake_pool import LAYOUT, sealed_blocks
from tests.kv_transfer.handover import EXPORTER_LIFE, SETTINGS, Channel, job_of
from tests.kv_transfer.pair import Pair, ended

TOKENS = 300
SLOW, FAST = 1e5, 1e13


async def make_pair(prefill: str, decode: str, network: LoopbackNetwork) -> Pair:
    transports = LoopbackTransport(network), LoopbackTransport(network)
    for transport in transports:
        await transport.start()
    settings = [replace(SETTINGS, wire_format=name) for name in (prefill, decode)]
    pair = Pair(*transports, settings[0])
    if decode != prefill:
        pair.importer = Pair(*transports, settings[1]).importer
        pair.decode_pool = pair.importer.memory  # type: ignore[assignment]  # the other pair's pool
    numbers = np.random.default_rng(3).standard_normal(pair.prefill_pool.bytes.size // 4).astype(np.float32)
    pair.prefill_pool.bytes[:] = numbers.view(np.uint8).reshape(pair.prefill_pool.bytes.shape)
    return pair


def measured(pair: Pair, bytes_per_s: float) -> None:
    link = LinkReport(
        peer=WorkerId("prefill-0"),
        incarnation=EXPORTER_LIFE,
        transport="loopback",
        large_in_bytes_per_s=bytes_per_s,
        small_in_bytes_per_s=bytes_per_s,
    )
    pair.importer.links.enter(link)


def floats(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    groups = LAYOUT.layers * 2 * LAYOUT.kv_heads
    return blocks.view(np.float32).reshape(len(blocks), groups, -1)


@pytest.fixture
async def network() -> AsyncIterator[LoopbackNetwork]:
    network = LoopbackNetwork()
    yield network
    for transport in list(network.transports.values()):
        await transport.close()


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("tokens", [1, 16, TOKENS])
async def test_over_a_slow_link_blocks_arrive_rounded_and_smaller(
    name: str, tokens: int, network: LoopbackNetwork
) -> None:
    pair = await make_pair(name, name, network)
    measured(pair, SLOW)
    running = pair.start(tokens)
    pair.export(tokens)
    imported = await ended(running)
    count = len(sealed_blocks(tokens))
    assert imported.rounded
    assert imported.report.moved_blocks == count
    assert imported.report.wire_format == name
    assert imported.report.exact_bytes == count * LAYOUT.block_bytes
    assert imported.report.wire_share < 0.3
    exact, here = floats(pair.prefill_pool.bytes[:count]), floats(pair.decode_pool.bytes[4 : 4 + count])
    largest = np.abs(exact).max(axis=2, keepdims=True)
    bound = largest / 254 if name == "int8" else np.maximum(np.abs(exact) / 16, largest / 458_752)
    assert (np.abs(exact - here) <= bound * 1.001 + 1e-12).all()
    assert not np.array_equal(exact, here)
    await pair.assert_no_holds()


async def test_packed_blocks_come_in_as_many_lots_as_they_are_packed_in(
    network: LoopbackNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kv_transfer.wire.LOT_BYTES", 5 * LAYOUT.block_bytes)
    pair = await make_pair("int8", "int8", network)
    measured(pair, SLOW)
    running = pair.start(TOKENS)
    pair.export(TOKENS)
    report = (await ended(running)).report
    assert (report.moved_blocks, report.messages) == (19, 4)


@pytest.mark.parametrize(
    ("prefill", "decode", "bytes_per_s"),
    [
        ("exact", "exact", SLOW),
        ("int8", "exact", SLOW),
        ("exact", "int8", SLOW),
        ("fp8", "int8", SLOW),
        ("int8", "int8", FAST),
        ("int8", "int8", 0.0),
    ],
)
async def test_blocks_are_bit_exact_unless_both_sides_and_the_link_ask_for_less(
    prefill: str, decode: str, bytes_per_s: float, network: LoopbackNetwork
) -> None:
    pair = await make_pair(prefill, decode, network)
    if bytes_per_s:
        measured(pair, bytes_per_s)
    running = pair.start(TOKENS)
    pair.export(TOKENS)
    imported = await ended(running)
    assert not imported.rounded
    assert imported.report.moved_bytes == imported.report.moved_blocks * LAYOUT.block_bytes
    assert (imported.report.wire_format, imported.report.wire_share) == ("exact", 1.0)
    pair.assert_same(TOKENS)
    assert imported.report.moved_blocks == len(sealed_blocks(TOKENS))


def test_off_is_the_default() -> None:
    assert TransferSettings().wire_format == "exact"
    with pytest.raises(ValueError, match="wire_format"):
        TransferSettings(wire_format="int4")


async def test_packing_that_costs_more_than_the_link_is_not_chosen(network: LoopbackNetwork) -> None:
    wire = (await make_pair("int8", "int8", network)).importer.wire
    assert wire is not None
    assert wire.suits(WireOffer(format="int8", gain_s_per_byte=1.0))
    assert not wire.suits(WireOffer(format="int8", gain_s_per_byte=1e-15))
    assert not wire.suits(WireOffer(format="fp8", gain_s_per_byte=1.0))
    assert not wire.suits(None)


async def test_a_fetch_is_never_offered_rounded_blocks(network: LoopbackNetwork) -> None:
    pair = await make_pair("int8", "int8", network)
    measured(pair, SLOW)
    pair.serving = asyncio.create_task(pair.channel.serve(pair.exporter))
    await ended(asyncio.create_task(pair.importer.run(replace(job_of(32, first_target=4), lent=True), pair.channel)))
    opening = pair.channel.said[0]
    assert isinstance(opening, OpenFetch)
    assert opening.opening.wire is None


async def test_rounded_blocks_of_an_import_that_failed_are_not_kept(network: LoopbackNetwork) -> None:
    pair = await make_pair("int8", "int8", network)
    measured(pair, SLOW)
    job = job_of(TOKENS, first_target=4)
    pair.serving = asyncio.create_task(pair.channel.serve(pair.exporter))
    running = asyncio.create_task(pair.importer.run(job, pair.channel))
    await asyncio.sleep(0)
    assert isinstance(pair.channel.said[0], OpenExport)
    assert pair.channel.said[0].wire is not None
    pair.export(TOKENS)
    pair.exporter.close("the worker goes")
    with pytest.raises(Exception, match="the worker goes"):
        await ended(running)
    assert not job.remains.verified


async def test_a_format_that_was_not_offered_is_refused(network: LoopbackNetwork) -> None:
    pair = await make_pair("exact", "exact", network)
    pair.channel = Channel(
        twist=lambda message: [replace(message, wire_format="int8") if isinstance(message, ExportOpened) else message]
    )
    running = pair.start(TOKENS)
    pair.export(TOKENS)
    with pytest.raises(TransferFailed, match="not offered"):
        await ended(running)


async def test_a_packed_block_in_anothers_place_is_caught(
    network: LoopbackNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await make_pair("int8", "int8", network)
    measured(pair, SLOW)
    assert pair.importer.wire is not None
    unpack = pair.importer.wire.unpack
    rows: list[NDArray[np.uint8]] = []

    def swapped(row: NDArray[np.uint8], index: int) -> bytes:
        rows.append(row.copy())
        return unpack(rows[0], index)

    monkeypatch.setattr(pair.importer.wire, "unpack", swapped)
    running = pair.start(TOKENS)
    pair.export(TOKENS)
    with pytest.raises(TransferFailed, match="digest differs"):
        await ended(running)
    await pair.assert_no_holds()


async def test_a_packed_block_that_was_damaged_is_caught(
    network: LoopbackNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await make_pair("fp8", "fp8", network)
    measured(pair, SLOW)
    assert pair.importer.wire is not None
    unpack = pair.importer.wire.unpack

    def damaged(row: NDArray[np.uint8], index: int) -> bytes:
        row[100] ^= 1
        return unpack(row, index)

    monkeypatch.setattr(pair.importer.wire, "unpack", damaged)
    running = pair.start(TOKENS)
    pair.export(TOKENS)
    with pytest.raises(TransferFailed, match="digest differs"):
        await ended(running)
    await pair.assert_no_holds()
