"""Who may join: one whose id nobody lives by, and whose blocks are shaped like those of everybody of its model."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from block_directory.joining import refuse_a_twin, refuse_other_layouts
from block_directory.memory_directory import MemoryDirectory
from block_directory.publisher import Publisher
from cluster_core.errors import PartUnavailable, SettingsError
from cluster_core.identity import Incarnation
from cluster_core.workers import WorkerRecord
from tests.block_directory.samples import LEASE_S, Pool, quick_settings, record
from tests.machines.jumping_loop import JumpingLoop

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


async def always(_: WorkerRecord) -> bool:
    return True


async def test_a_worker_whose_id_another_process_lives_by_is_refused_in_one_line() -> None:
    directory = await directory_with(record("decode-0"), record("prefill-0"))
    with pytest.raises(SettingsError) as refused:
        await refuse_a_twin(directory, record("decode-0"), always, SOON_S)
    line = str(refused.value)
    assert line.startswith("worker id decode-0: another process lives by it, pid 4711 at 127.0.0.1:5001; ")
    assert "\n" not in line


async def test_a_dead_life_is_replaced_at_once_and_neither_others_nor_oneself_are_asked() -> None:
    mine, asked = record("decode-0"), list[WorkerRecord]()

    async def dead(other: WorkerRecord) -> bool:
        asked.append(other)
        return False

    earlier = record("decode-0")
    await refuse_a_twin(await directory_with(earlier, record("prefill-0")), mine, dead, LEASE_S)
    await refuse_a_twin(await directory_with(mine, record("prefill-0")), mine, dead, LEASE_S)
    assert asked == [earlier]


async def test_a_life_that_is_about_to_end_is_waited_for() -> None:
    looks = iter((True, True, False))

    async def ending(_: WorkerRecord) -> bool:
        return next(looks)

    await refuse_a_twin(await directory_with(record("decode-0")), record("decode-0"), ending, 10 * SOON_S)
    assert not list(looks)


class Twins:
    """Two processes that were told to live by one id, each started again by somebody when it ends."""

    def __init__(self, loop: JumpingLoop) -> None:
        self._settings = replace(quick_settings(), lease_s=3.0)
        self._directory = MemoryDirectory(self._settings, clock=loop.time)
        self._serving: dict[Incarnation, Publisher] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.starts = 0
        self.refusals = 0
        self.asks = True

    def begin(self) -> None:
        self.starts += 1
        task = asyncio.get_running_loop().create_task(self._live())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _speaks(self, other: WorkerRecord) -> bool:
        return self.asks and other.incarnation in self._serving

    async def _live(self) -> None:
        mine, pool, lease_s = record("decode-0"), Pool(), self._settings.lease_s
        try:
            await refuse_a_twin(self._directory, mine, self._speaks, lease_s)
        except SettingsError:
            self.refusals += 1
            await asyncio.sleep(lease_s)
            self.begin()
            return
        publisher = Publisher(self._directory, mine, pool.drain_events, pool.cached_hashes, self._settings)
        publisher.on_replaced = partial(self._replaced, mine)
        self._serving[mine.incarnation] = publisher
        await publisher.start()

    def _replaced(self, mine: WorkerRecord) -> None:
        publisher = self._serving.pop(mine.incarnation)
        task = asyncio.get_running_loop().create_task(publisher.close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.begin()

    def lives(self) -> frozenset[Incarnation]:
        return frozenset(self._serving)


@pytest.mark.parametrize("asks", [True, False])
def test_supervised_twins_push_each_other_out_for_ever_unless_they_ask(*, asks: bool) -> None:
    loop = JumpingLoop()
    twins = Twins(loop)
    twins.asks = asks
    for _ in range(2):
        loop.do(twins.begin)
    loop.advance(30.0)
    after_a_while = twins.lives()
    loop.advance(120.0)
    lives, served = twins.lives(), twins.starts - twins.refusals
    loop.shut()
    if asks:
        assert lives == after_a_while
        assert len(lives) == 1
        assert served <= 3, "the second one, whom the first one had not heard of yet, took the place once at most"
        assert twins.refusals > 5
    else:
        assert lives.isdisjoint(after_a_while)
        assert served > 10
