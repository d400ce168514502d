from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.blocks import BlockReference
from cluster_core.errors import InvalidField
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    ExporterMessage,
    ExportFailed,
    ExportFinished,
    ExportOpened,
    FetchReport,
    FetchSource,
    HandoffReport,
    ImporterMessage,
    OpenExport,
    OpenFetch,
    PullBlocks,
    RejectBlocks,
    WireOffer,
)
from cluster_core.identity import Attempt, BlockHash, Incarnation, RequestId, Role, WorkerId
from cluster_core.links import LinkReport
from cluster_core.workers import WorkerLoad
from cluster_rpc import worker_messages
from cluster_rpc.handoff_messages import (
    exporter_from_proto,
    exporter_to_proto,
    importer_from_proto,
    importer_to_proto,
)
from cluster_rpc.v1 import handoff_pb2 as pb
from cluster_rpc.v1 import worker_pb2
from cluster_rpc.worker_messages import PrefillOrigin, WorkOrder
from tests.random_samplings import samplings

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
position = st.integers(0, 2**20 - 1)
positions = st.lists(position, max_size=5, unique=True).map(tuple)
seconds = st.floats(0, 1e6)
worker_ids = st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True).map(WorkerId)
order_ids = st.from_regex(r"[A-Za-z0-9._-]{1,64}(~[0-9])?", fullmatch=True).map(RequestId)
incarnations = st.integers(1, 2**64 - 1).map(Incarnation)
attempts = st.integers(1, 2**32 - 1).map(Attempt)
reasons = st.from_regex(r"[a-z]{1,20}( [a-z]{1,20}){0,3}", fullmatch=True)
references = st.builds(
    BlockReference,
    position=position,
    index=u32,
    generation=u64,
    hash=st.none() | st.binary(min_size=16, max_size=16).map(BlockHash),
    digest=st.binary(min_size=16, max_size=16),
    tokens=st.integers(1, 1024),
)
blocks = st.lists(references, max_size=4, unique_by=lambda block: block.position).map(tuple)
tags = st.integers(0, 2**64 - 10)

hashes = st.lists(st.binary(min_size=16, max_size=16).map(BlockHash), min_size=1, max_size=4).map(tuple)
openings = st.builds(
    OpenExport,
    request_id=order_ids,
    attempt=attempts,
    exporter_incarnation=incarnations,
    importer=worker_ids,
    importer_incarnation=incarnations,
    importer_transport_address=st.binary(max_size=300),
    layout=reasons,
    wire=st.none() | st.builds(WireOffer, format=st.text("abc8", max_size=8), gain_s_per_byte=st.floats(0, 1)),
)
importer_messages: st.SearchStrategy[ImporterMessage] = st.one_of(
    openings,
    st.builds(OpenFetch, opening=openings, first=st.integers(0, 2**20 - 10), hashes=hashes),
    st.builds(PullBlocks, tag=tags, positions=positions),
    st.builds(AcceptBlocks),
    st.builds(RejectBlocks, reason=reasons, positions=positions),
)
spans = st.floats(-1e7, 1e7)
finishes = st.builds(
    ExportFinished, first_token_id=u32, fork_token_ids=st.lists(u32, max_size=3).map(tuple), ended_s=spans
)
exporter_messages: st.SearchStrategy[ExporterMessage] = st.one_of(
    st.builds(
        ExportOpened,
        lease_s=st.floats(0.1, 3600),
        exporter_transport_address=st.binary(max_size=300),
        wire_format=st.text("abc8", max_size=8),
        waited_s=seconds,
    ),
    st.builds(BlocksSealed, blocks=blocks, finished=st.none() | finishes, filled_s=spans, pulled_s=st.none() | spans),
    finishes,
    st.builds(ExportFailed, reason=reasons),
)
sources = st.builds(
    FetchSource,
    worker_id=worker_ids,
    incarnation=incarnations,
    address=reasons,
    blocks=st.integers(1, 2**20),
    patience_s=seconds,
)
fetches = st.builds(
    FetchReport,
    lender=worker_ids,
    asked_blocks=u32,
    moved_blocks=u32,
    moved_bytes=u64,
    transfer_s=seconds,
    elapsed_s=seconds,
    failure=reasons,
)
orders = st.builds(
    WorkOrder,
    request_id=order_ids,
    attempt=attempts,
    prompt_token_ids=st.lists(u32, min_size=1, max_size=8).map(tuple),
    sampling=samplings,
    root_hash=st.binary(min_size=16, max_size=16),
    choices=st.integers(1, 64),
    fetch=st.none() | sources,
)
origins = st.builds(PrefillOrigin, worker_id=worker_ids, incarnation=incarnations, address=reasons)
loads = st.builds(
    WorkerLoad,
    waiting_requests=u32,
    queued_prefill_tokens=u32,
    engine_steps=u64,
    prefill_s_per_token=seconds,
    transfer_bytes_per_s=seconds,
    draining=st.booleans(),
    preemptions=u64,
    answer_steps=u64,
    written_tokens=u64,
    guessed_tokens=u64,
    accepted_guesses=u64,
    draft_s=seconds,
    draft_held_blocks=u32,
)


@given(importer_messages)
def test_importer_messages_survive_the_wire(message: ImporterMessage) -> None:
    wire = importer_to_proto(message).SerializeToString()
    assert importer_from_proto(pb.ImporterMessage.FromString(wire)) == message


@given(exporter_messages)
def test_exporter_messages_survive_the_wire(message: ExporterMessage) -> None:
    wire = exporter_to_proto(message).SerializeToString()
    assert exporter_from_proto(pb.ExporterMessage.FromString(wire)) == message


@given(orders, st.none() | origins)
def test_orders_survive_the_wire(order: WorkOrder, origin: PrefillOrigin | None) -> None:
    prefill = worker_messages.prefill_to_proto(order).SerializeToString()
    assert worker_messages.order_from_proto(worker_pb2.PrefillRequest.FromString(prefill)) == order
    sent = replace(order, origin=origin)
    decode = worker_messages.decode_to_proto(sent).SerializeToString()
    told = sent if origin is None else replace(sent, fetch=None)
    assert worker_messages.order_from_proto(worker_pb2.DecodeRequest.FromString(decode)) == told, "the reader fetches"


@given(fetches)
def test_reports_of_fetches_survive_the_wire(report: FetchReport) -> None:
    message = worker_messages.fetch_to_proto(report)
    assert message is not None
    assert worker_messages.fetch_from_proto(worker_pb2.FetchReport.FromString(message.SerializeToString())) == report
    assert worker_messages.fetch_to_proto(None) is None


@given(worker_ids, incarnations, loads)
def test_loads_survive_the_wire(worker_id: WorkerId, incarnation: Incarnation, load: WorkerLoad) -> None:
    wire = worker_messages.status_to_proto(worker_id, incarnation, load).SerializeToString()
    status = worker_pb2.WorkerStatus.FromString(wire)
    assert worker_messages.load_from_proto(status) == load
    assert worker_messages.identity_from_proto(status) == (worker_id, incarnation)


def test_every_field_of_a_load_has_a_place_on_the_wire() -> None:
    numbers = {name: index + 1 for index, name in enumerate(WorkerLoad.__slots__)}
    link = LinkReport(peer=WorkerId("w-1"), incarnation=Incarnation(2), transport="ucx")
    load = WorkerLoad(**{**numbers, "draining": True, "links": (link,)})  # type: ignore[arg-type]  # whole numbers do for floats
    status = worker_messages.status_to_proto(WorkerId("w"), Incarnation(1), load)
    assert worker_messages.load_from_proto(status) == load


def test_reports_and_roles_survive_the_wire() -> None:
    report = HandoffReport(
        moved_blocks=1,
        kept_blocks=2,
        moved_bytes=3,
        messages=4,
        transfer_s=0.5,
        exposed_s=0.25,
        transport="ucx",
        exact_bytes=6,
        wire_format="int8",
        overlapped_s=0.125,
        unsure_s=0.0625,
    )
    assert worker_messages.report_from_proto(worker_messages.report_to_proto(report)) == report
    for role in Role:
        assert worker_messages.role_from_proto(worker_messages.role_to_proto(role)) is role
    with pytest.raises(InvalidField, match="role"):
        worker_messages.role_from_proto(0)


GOOD: dict[str, Any] = {"position": 0, "index": 1, "generation": 1, "digest": b"d" * 16, "tokens": 16}


FORKED = pb.ExportFinished(fork_token_ids=range(1000))


def sealed(*blocks: dict[str, Any]) -> pb.ExporterMessage:
    return pb.ExporterMessage(sealed=pb.BlocksSealed(blocks=blocks))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.ExporterMessage(), "message"),
        (pb.ExporterMessage(opened=pb.ExportOpened(lease_s=float("nan"))), "opened.lease_s"),
        (pb.ExporterMessage(opened=pb.ExportOpened(lease_s=0.0)), "opened.lease_s"),
        (pb.ExporterMessage(opened=pb.ExportOpened(lease_s=1e9)), "opened.lease_s"),
        (pb.ExporterMessage(opened=pb.ExportOpened(lease_s=1, waited_s=-1.0)), "opened.waited_s"),
        (pb.ExporterMessage(opened=pb.ExportOpened(lease_s=1, waited_s=1e9)), "opened.waited_s"),
        (pb.ExporterMessage(sealed=pb.BlocksSealed(filled_s=float("nan"))), "sealed.filled_s"),
        (pb.ExporterMessage(sealed=pb.BlocksSealed(filled_s=-1e300)), "sealed.filled_s"),
        (pb.ExporterMessage(sealed=pb.BlocksSealed(pulled_s=float("-inf"))), "sealed.pulled_s"),
        (pb.ExporterMessage(finished=pb.ExportFinished(ended_s=float("inf"))), "finished.ended_s"),
        (
            pb.ExporterMessage(opened=pb.ExportOpened(lease_s=1, exporter_transport_address=b"x" * 70_000)),
            "opened.exporter_transport_address",
        ),
        (pb.ExporterMessage(failed=pb.ExportFailed(reason="x" * 3000)), "failed.reason"),
        (pb.ExporterMessage(finished=FORKED), "finished.fork_token_ids"),
        (pb.ExporterMessage(sealed=pb.BlocksSealed(finished=FORKED)), "sealed.finished.fork_token_ids"),
        (sealed({**GOOD, "hash": b"short"}), "sealed.blocks[0].hash"),
        (sealed({**GOOD, "digest": b""}), "sealed.blocks[0].digest"),
        (sealed({**GOOD, "tokens": 0}), "sealed.blocks[0].tokens"),
        (sealed({**GOOD, "tokens": 2**32 - 1}), "sealed.blocks[0].tokens"),
        (sealed(GOOD, GOOD), "sealed.blocks.position"),
        (sealed({**GOOD, "position": 2**31}), "sealed.blocks.position"),
    ],
)
def test_malformed_exporter_messages_are_refused(message: pb.ExporterMessage, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        exporter_from_proto(message)
    assert caught.value.field == field


OPEN: dict[str, Any] = {
    "request_id": "r",
    "attempt": 1,
    "exporter_incarnation": 1,
    "importer": "decode-0",
    "importer_incarnation": 1,
    "layout": "l",
}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.ImporterMessage(), "message"),
        (pb.ImporterMessage(open=pb.OpenExport(**{**OPEN, "request_id": "a b"})), "open.request_id"),
        (pb.ImporterMessage(open=pb.OpenExport(**{**OPEN, "attempt": 0})), "attempt"),
        (pb.ImporterMessage(open=pb.OpenExport(**{**OPEN, "exporter_incarnation": 0})), "open.exporter_incarnation"),
        (pb.ImporterMessage(open=pb.OpenExport(**{**OPEN, "importer": "../etc"})), "open.importer"),
        (pb.ImporterMessage(open=pb.OpenExport(**{**OPEN, "layout": "l" * 600})), "open.layout"),
        (pb.ImporterMessage(fetch=pb.OpenFetch(opening=pb.OpenExport(**OPEN))), "fetch.hashes"),
        (pb.ImporterMessage(fetch=pb.OpenFetch(opening=pb.OpenExport(**OPEN), hashes=[b"short"])), "fetch.hashes"),
        (pb.ImporterMessage(fetch=pb.OpenFetch(first_position=2**32 - 1, hashes=[b"h" * 16])), "fetch.hashes"),
        (pb.ImporterMessage(pull=pb.PullBlocks(tag=1, positions=[3, 3])), "pull.positions"),
        (pb.ImporterMessage(pull=pb.PullBlocks(tag=2**64 - 1, positions=[0, 1])), "pull.tag"),
        (pb.ImporterMessage(reject=pb.RejectBlocks(reason="x" * 3000)), "reject.reason"),
    ],
)
def test_malformed_importer_messages_are_refused(message: pb.ImporterMessage, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        importer_from_proto(message)
    assert caught.value.field == field


SAMPLING: dict[str, Any] = {"top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "max_tokens": 1}
ORDER: dict[str, Any] = {"request_id": "r", "attempt": 1, "prompt_token_ids": [1], "root_hash": b"h" * 16}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request_id": ""}, "request_id"),
        ({"attempt": 0}, "attempt"),
        ({"prompt_token_ids": []}, "prompt_token_ids"),
        ({"root_hash": b"h"}, "root_hash"),
        ({"source": {"worker_id": "", "incarnation": 1}}, "source.worker_id"),
        ({"source": {"worker_id": "p", "incarnation": 0}}, "source.incarnation"),
        ({"source": {"worker_id": "p", "incarnation": 1, "address": "x" * 300}}, "source.address"),
        ({"sampling": {**SAMPLING, "max_tokens": 0}}, "sampling.max_tokens"),
        ({"choices": 65}, "choices"),
        ({"fetch": {"worker_id": "", "incarnation": 1, "blocks": 1}}, "fetch.worker_id"),
        ({"fetch": {"worker_id": "p", "incarnation": 0, "blocks": 1}}, "fetch.incarnation"),
        ({"fetch": {"worker_id": "p", "incarnation": 1, "blocks": 0}}, "fetch.blocks"),
        ({"fetch": {"worker_id": "p", "incarnation": 1, "blocks": 1, "patience_s": -1.0}}, "fetch.patience_s"),
        ({"request_id": "r~1~2"}, "request_id"),
    ],
)
def test_malformed_orders_are_refused(change: dict[str, Any], field: str) -> None:
    request = worker_pb2.DecodeRequest(**{**ORDER, "sampling": SAMPLING, **change})
    with pytest.raises(InvalidField) as caught:
        worker_messages.order_from_proto(request)
    assert caught.value.field == field


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_random_bytes_never_do_more_than_fail_the_checks(raw: bytes) -> None:
    readers: list[tuple[Any, Any]] = [
        (pb.ImporterMessage, importer_from_proto),
        (pb.ExporterMessage, exporter_from_proto),
    ]
    for kind, read in readers:
        with suppress(DecodeError, InvalidField):
            read(kind.FromString(raw))
