"""Running workers look for holds without an owner on both sides, and report what they find."""

import pytest

import decode_worker.worker
import prefill_worker.worker
from cluster_core.holds import RequestHold
from cluster_core.identity import Attempt, RequestId
from tests.eventually import eventually
from tests.worker_orders import make_prompt
from tests.worker_pair import running_pair

LOST = RequestHold(RequestId("lost"), Attempt(1))


@pytest.fixture(autouse=True)
def sweeping_often(monkeypatch: pytest.MonkeyPatch) -> None:
    for worker in (decode_worker.worker, prefill_worker.worker):
        monkeypatch.setattr(worker, "SWEEP_S", 0.002)


async def test_a_leak_in_either_worker_is_given_back_and_reported() -> None:
    async with running_pair() as pair:
        for worker in (pair.prefill, pair.decode):
            worker.parts.pool.allocate(3, LOST)
            await eventually(lambda worker=worker: worker.load().orphaned_holds == 3)  # type: ignore[misc]  # its default
            assert worker.parts.pool.counts().held == 0


async def test_requests_under_way_are_no_orphans_however_often_is_swept() -> None:
    async with running_pair() as pair:
        for length in (1, 17, 40, 41):
            await pair.client.split(f"split{length}", make_prompt(length, length))
            await pair.client.local(f"local{length}", make_prompt(length, length + 1))
        await pair.until_free()
        assert (pair.prefill.load().orphaned_holds, pair.decode.load().orphaned_holds) == (0, 0)
