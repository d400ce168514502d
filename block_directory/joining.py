"""Whether a worker may join: its blocks must be shaped like those of everybody who serves the same model."""

import asyncio
import logging
from dataclasses import fields

from block_directory.directory import WorkerRegistry
from cluster_core.errors import PartUnavailable, SettingsError
from cluster_core.layout import KvLayout
from cluster_core.workers import WorkerRecord

_logger = logging.getLogger(__name__)

_SETTINGS = {"block_size_tokens": "engine.block_size_tokens", "dtype": "engine.dtype"}
"""The key of the configuration that decides a field; the others follow from the model."""
_PATIENCE_LEASES = 1.2
_LOOKS_A_LEASE = 10


async def refuse_other_layouts(directory: WorkerRegistry, record: WorkerRecord, lease_s: float) -> None:
    """Raise `SettingsError`, which names the field, where a registered worker of the same model has other blocks.

    Blocks could not be handed over between the two. A worker that has died is still registered until its lease ends:
    so the other one is waited for that long, and only one that stays counts. Workers of other models are not compared,
    nor earlier lives of this one. A directory that does not answer is no reason to refuse: the router looks too.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _PATIENCE_LEASES * lease_s
    while True:
        try:
            registered = await directory.workers()
        except PartUnavailable as error:
            _logger.warning("%s joins without comparing its blocks to the others': %s", record.worker_id, error)
            return
        others = [(other, different_field(record, other)) for other in registered]
        found = next(((other, name) for other, name in others if name is not None), None)
        if found is None:
            return
        if loop.time() >= give_up_at:
            raise SettingsError(_refusal(record, *found))
        await asyncio.sleep(lease_s / _LOOKS_A_LEASE)


def different_field(record: WorkerRecord, other: WorkerRecord) -> str | None:
    """Return the first field in which the blocks of two workers of one model differ, if there is one."""
    if other.worker_id == record.worker_id or other.model.fingerprint != record.model.fingerprint:
        return None
    names = (field.name for field in fields(KvLayout))
    return next((name for name in names if getattr(record.layout, name) != getattr(other.layout, name)), None)


def _refusal(record: WorkerRecord, other: WorkerRecord, name: str) -> str:
    here, there = getattr(record.layout, name), getattr(other.layout, name)
    return (
        f"{_SETTINGS.get(name, f'layout.{name}')}: {here} at {record.worker_id}, {there} at {other.worker_id}, which "
        "serves the same model: blocks could not be handed over between them; give both the same value, or end the "
        "other workers first"
    )
