"""`WorkerRecord` as JSON. Whatever another process wrote is read with suspicion."""

import json
import re
from dataclasses import asdict
from typing import Any

from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.layout import DTYPE_BYTES, KvLayout, ModelIdentity
from cluster_core.workers import WorkerRecord

RECORD_VERSION = 1
MAX_RECORD_BYTES = 8192

_WORKER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_INCARNATION = re.compile(r"[0-9a-f]{16}")
_ADDRESS = re.compile(r"[A-Za-z0-9._:\[\]%-]{1,255}:[0-9]{1,5}")
_MAX_COUNT = 2**53


def incarnation_text(incarnation: Incarnation) -> str:
    """Sixteen hex digits."""
    return f"{incarnation:016x}"


def incarnation_from(text: str) -> Incarnation:
    """Read `incarnation_text`. Raises ValueError for anything else."""
    if not _INCARNATION.fullmatch(text) or not int(text, 16):
        message = f"not an incarnation: {text[:40]!r}"
        raise ValueError(message)
    return Incarnation(int(text, 16))


def worker_id_from(text: str) -> WorkerId:
    """Check a worker's id. Raises ValueError when it could not be part of a key."""
    if not _WORKER_ID.fullmatch(text):
        message = f"not a worker id: {text[:80]!r}; use 1 to 64 letters, digits, dots, dashes or underscores"
        raise ValueError(message)
    return WorkerId(text)


def record_to_json(record: WorkerRecord) -> bytes:
    """One line of JSON. Raises ValueError for a record that `record_from_json` would refuse."""
    fields = asdict(record) | {
        "version": RECORD_VERSION,
        "incarnation": incarnation_text(record.incarnation),
        "role": record.role.value,
    }
    encoded = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    record_from_json(encoded)
    return encoded


def record_from_json(encoded: bytes) -> WorkerRecord:
    """Read `record_to_json`. Raises ValueError for every other input, however strange."""
    if len(encoded) > MAX_RECORD_BYTES:
        message = f"a record of {len(encoded)} bytes"
        raise ValueError(message)
    try:
        document = json.loads(encoded)
    except RecursionError as error:
        message = "a record nested too deeply"
        raise ValueError(message) from error
    fields = _Fields(document, "record")
    if fields.count("version") != RECORD_VERSION:
        message = "a record of another version"
        raise ValueError(message)
    model = _Fields(fields.take("model"), "model")
    layout = _Fields(fields.take("layout"), "layout")
    record = WorkerRecord(
        worker_id=worker_id_from(fields.text("worker_id")),
        incarnation=incarnation_from(fields.text("incarnation")),
        role=Role(fields.text("role")),
        address=fields.text("address"),
        transport=fields.text("transport"),
        model=ModelIdentity(
            name=model.text("name"),
            fingerprint=model.text("fingerprint"),
            vocab_size=model.count("vocab_size"),
            max_context_tokens=model.count("max_context_tokens"),
        ),
        layout=KvLayout(
            layers=layout.count("layers"),
            kv_heads=layout.count("kv_heads"),
            head_dim=layout.count("head_dim"),
            block_size_tokens=layout.count("block_size_tokens"),
            dtype=layout.text("dtype"),
            window_tokens=layout.count("window_tokens", least=0),
        ),
        total_blocks=fields.count("total_blocks"),
        pid=fields.count("pid"),
    )
    for each in (fields, model, layout):
        each.finish()
    _check(record)
    return record


def _check(record: WorkerRecord) -> None:
    host, _, port = record.address.rpartition(":")
    if not _ADDRESS.fullmatch(record.address) or not host or not 0 < int(port) < 65536:
        message = f"address: not host:port: {record.address[:80]!r}"
        raise ValueError(message)
    if record.layout.dtype not in DTYPE_BYTES:
        message = f"layout.dtype: unknown: {record.layout.dtype[:80]!r}"
        raise ValueError(message)


class _Fields:
    """A JSON object that must have exactly the fields that are taken from it."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            message = f"{where}: not an object"
            raise ValueError(message)  # noqa: TRY004 - to the caller every strange record is one error
        self._left: dict[str, Any] = dict(value)
        self._where = where

    def take(self, key: str) -> object:
        if key not in self._left:
            message = f"{self._where}.{key}: missing"
            raise ValueError(message)
        return self._left.pop(key)

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not value or not value.isprintable():
            message = f"{self._where}.{key}: not a printable string"
            raise ValueError(message)
        return value

    def count(self, key: str, least: int = 1) -> int:
        value = self.take(key)
        if type(value) is not int or not least <= value <= _MAX_COUNT:
            message = f"{self._where}.{key}: not a whole number from {least} to {_MAX_COUNT}"
            raise ValueError(message)
        return value

    def finish(self) -> None:
        if self._left:
            message = f"{self._where}: unknown field {min(self._left)[:40]!r}"
            raise ValueError(message)
