"""Whether a worker may join: nobody may live by its id, and its blocks must be shaped like everybody's of its model."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import TypeAlias

from block_directory.directory import WorkerRegistry
from cluster_core.errors import PartUnavailable, SettingsError
from cluster_core.layout import KvLayout
from cluster_core.workers import WorkerRecord

_logger = logging.getLogger(__name__)

_SETTINGS = {"block_size_tokens": "engine.block_size_tokens", "dtype": "engine.dtype"}
"""The key of the configuration that decides a field; the others follow from the model."""
_PATIENCE_LEASES = 1.2
_LOOKS_A_LEASE = 10

Speaks: TypeAlias = Callable[[WorkerRecord], Awaitable[bool]]
"""Says whether a registered life of a worker answers by itself, and goes on."""


async def refuse_a_twin(directory: WorkerRegistry, record: WorkerRecord, speaks: Speaks, lease_s: float) -> None:
    """Raise `SettingsError`, which says where it runs, where another life of this worker is registered and lives.

    Registering would take its place, and where both are supervised each would push the other out in turn, for ever. A
    life that is dead, stopped or about to leave does not speak, and is replaced at once; one that speaks may be about
    to end, and is waited for as `refuse_other_layouts` waits. A directory that does not answer is no reason to refuse.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _PATIENCE_LEASES * lease_s
    while (twin := await _other_life(directory, record)) is not None and await speaks(twin):
        if loop.time() >= give_up_at:
            message = (
                f"worker id {record.worker_id}: another process lives by it, pid {twin.pid} at {twin.address}; "
                "start this one by another id, or end that one first"
            )
            raise SettingsError(message)
        await asyncio.sleep(lease_s / _LOOKS_A_LEASE)


async def _other_life(directory: WorkerRegistry, record: WorkerRecord) -> WorkerRecord | None:
    try:
        registered = await directory.workers()
    except PartUnavailable as error:
        _logger.warning("%s joins without looking for another of its id: %s", record.worker_id, error)
        return None
    of_its_id = (other for other in registered if other.worker_id == record.worker_id)
    return next((other for other in of_its_id if other.incarnation != record.incarnation), None)


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
