"""Registrations and log entries from strangers."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from block_directory.log_entries import entry_from_fields, entry_to_fields
from block_directory.records import record_from_json, record_to_json
from tests.block_directory.samples import record

GOOD = json.loads(record_to_json(record(incarnation=0xFFFFFFFFFFFFFFFF)))


def changed(**fields: object) -> bytes:
    return json.dumps(GOOD | fields).encode()


def without(key: str) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name != key}).encode()


def test_a_record_survives_the_way() -> None:
    original = record(incarnation=0xFFFFFFFFFFFFFFFF)
    assert record_from_json(record_to_json(original)) == original


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 8000,
        b'{"a": ' * 1000,
        b" " * 10_000,
        changed(version=2),
        changed(version=True),
        changed(worker_id="../x"),
        changed(worker_id="a" * 65),
        changed(worker_id=7),
        changed(incarnation="0" * 16),
        changed(incarnation="F" * 16),
        changed(incarnation=5),
        changed(role="boss"),
        changed(address="nowhere"),
        changed(address=":80"),
        changed(address="host:0"),
        changed(address="host:99999"),
        changed(address="a b:80"),
        changed(transport="a\nb"),
        changed(transport=""),
        changed(total_blocks=-1),
        changed(total_blocks=2.5),
        changed(total_blocks=float("nan")),
        changed(total_blocks=10**30),
        changed(pid=True),
        changed(model=None),
        changed(layout={}),
        changed(layout=GOOD["layout"] | {"dtype": "int3"}),
        changed(model=GOOD["model"] | {"extra": 1}),
        changed(extra=1),
        *[without(key) for key in GOOD],
    ],
)
def test_a_strange_record_is_one_kind_of_error(encoded: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        record_from_json(encoded)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps))
@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_noise_is_refused(noise: bytes | str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        record_from_json(noise.encode() if isinstance(noise, str) else noise)


def test_a_worker_cannot_register_what_nobody_would_read() -> None:
    with pytest.raises(ValueError, match="worker id"):
        record_to_json(replace(record(), worker_id="a:b"))  # type: ignore[arg-type]  # on purpose


FIELDS: dict[bytes, bytes] = {
    b"worker": b"w",
    b"life": b"%016x" % 5,
    b"sequence": b"3",
    b"kind": b"stored",
    b"hashes": bytes(32),
}


def test_an_entry_survives_the_way() -> None:
    entry = entry_from_fields(FIELDS)
    assert entry_to_fields(entry) == FIELDS


@pytest.mark.parametrize(
    "wrong",
    [
        {b"worker": b"\xff"},
        {b"worker": b""},
        {b"life": b"5"},
        {b"sequence": b"-1"},
        {b"sequence": b"9" * 17},
        {b"sequence": "٣".encode()},
        {b"kind": b"forgotten"},
        {b"hashes": bytes(31)},
    ],
)
def test_a_strange_entry_is_one_kind_of_error(wrong: dict[bytes, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        entry_from_fields(FIELDS | wrong)


@pytest.mark.parametrize("missing", list(FIELDS))
def test_an_entry_needs_every_field(missing: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        entry_from_fields({key: value for key, value in FIELDS.items() if key != missing})
