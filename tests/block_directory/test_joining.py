"""Who may join: one whose blocks are shaped like those of everybody that serves the same model."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from block_directory.joining import refuse_other_layouts
from block_directory.memory_directory import MemoryDirectory
from cluster_core.errors import PartUnavailable, SettingsError
from cluster_core.workers import WorkerRecord
from tests.block_directory.samples import LEASE_S, quick_settings, record

SOON_S = 0.02


def with_layout(worker_id: str, **layout: Any) -> WorkerRecord:
    one = record(worker_id)
    return replace(one, layout=replace(one.layout, **layout))


async def directory_with(*records: WorkerRecord, lease_s: float = LEASE_S) -> MemoryDirectory:
    directory = MemoryDirectory(quick_settings())
    for one in records:
        await directory.register(one, lease_s)
    return directory


@pytest.mark.parametrize(
    ("layout", "key", "values"),
    [
        ({"block_size_tokens": 32}, "engine.block_size_tokens", ("32", "16")),
        ({"dtype": "bfloat16"}, "engine.dtype", ("bfloat16", "float32")),
        ({"kv_heads": 2}, "layout.kv_heads", ("2", "1")),
        ({"window_tokens": 64}, "layout.window_tokens", ("64", "0")),
    ],
)
async def test_other_blocks_are_refused_by_name_with_both_values(
    layout: dict[str, Any], key: str, values: tuple[str, str]
) -> None:
    directory = await directory_with(record("prefill-0"))
    with pytest.raises(SettingsError) as refused:
        await refuse_other_layouts(directory, with_layout("decode-0", **layout), SOON_S)
    here, there = values
    assert str(refused.value).startswith(
        f"{key}: {here} at decode-0, {there} at prefill-0, which serves the same model"
    )
    assert "\n" not in str(refused.value)


async def test_equal_blocks_other_models_and_the_own_earlier_life_are_no_reason() -> None:
    other_model = with_layout("prefill-1", block_size_tokens=64)
    other_model = replace(other_model, model=replace(other_model.model, fingerprint="cd34"))
    earlier = with_layout("decode-0", block_size_tokens=64)
    directory = await directory_with(record("prefill-0"), other_model, earlier)
    await refuse_other_layouts(directory, record("decode-0"), SOON_S)


async def test_a_dead_workers_registration_is_waited_out() -> None:
    directory = await directory_with(with_layout("prefill-0", block_size_tokens=64), lease_s=SOON_S)
    async with asyncio.timeout(10):
        await refuse_other_layouts(directory, record("decode-0"), 10 * SOON_S)


async def test_a_directory_that_does_not_answer_is_no_reason() -> None:
    class Silent(MemoryDirectory):
        async def workers(self) -> list[WorkerRecord]:
            message = "nobody answers"
            raise PartUnavailable(message)

    await refuse_other_layouts(Silent(quick_settings()), record("decode-0"), SOON_S)
