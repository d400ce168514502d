"""What `baton scale` asks for, and what `baton status` and `baton up` show, of views that are made up."""

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from rich.console import Console

from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.workers import WorkerLoad
from cluster_launcher import scale_command
from cluster_launcher.cluster import Ready
from cluster_launcher.exit_codes import ExitCode
from cluster_launcher.output import Output
from cluster_launcher.status_command import pools_table, status_json
from cluster_launcher.up_command import _say_ready
from cluster_rpc.answers import ClusterView, WorkerView

DIRECTORY_URL = "redis://baton:secret@10.0.0.1:6379/0"


def _worker(name: str, state: str, load: WorkerLoad | None = None) -> WorkerView:
    return WorkerView(
        worker_id=WorkerId(name),
        incarnation=Incarnation(1),
        role=Role(name.partition("-")[0]),
        address="127.0.0.1:1",
        transport="ucx",
        state=state,
        load=load or WorkerLoad(),
        pid=1,
    )


def _view(*workers: WorkerView) -> ClusterView:
    return ClusterView(
        workers=workers,
        mode="SERVING",
        model="demo",
        live_requests=0,
        queued_requests=0,
        directory_url=DIRECTORY_URL,
    )


class Router:
    """Grants whatever is asked for."""

    def __init__(self, view: ClusterView) -> None:
        self.view = view
        self.asked: list[tuple[int, int]] = []

    async def list_workers(self) -> ClusterView:
        return self.view

    async def set_pools(self, prefill: int, decode: int) -> tuple[int, int]:
        self.asked.append((prefill, decode))
        return prefill, decode


async def test_a_pool_that_is_not_named_keeps_the_workers_that_are_being_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = (_worker("decode-0", "lost"), _worker("decode-1", "ready"), _worker("decode-2", "draining"))
    router = Router(_view(_worker("prefill-0", "ready"), *workers))

    @asynccontextmanager
    async def reach(_: str) -> AsyncIterator[tuple[Router, ClusterView]]:
        yield router, router.view

    monkeypatch.setattr(scale_command, "reach", reach)
    code = await scale_command.scale("127.0.0.1:1", {Role.PREFILL: 1}, Output(as_json=True))
    assert code is ExitCode.OK
    assert router.asked == [(1, 2)]


def test_the_table_shows_preemptions() -> None:
    written = Console(file=io.StringIO(), width=160)
    written.print(pools_table(_view(_worker("decode-0", "ready", WorkerLoad(preemptions=417)))))
    assert isinstance(written.file, io.StringIO)
    heading, row = written.file.getvalue().splitlines()[:2]
    assert "preempted" in heading
    assert "417" in row


def test_the_table_shows_what_guesses_brought() -> None:
    load = WorkerLoad(answer_steps=200, written_tokens=460, guessed_tokens=400, accepted_guesses=260)
    written = Console(file=io.StringIO(), width=160)
    written.print(pools_table(_view(_worker("decode-0", "ready", load), _worker("prefill-0", "ready"))))
    assert isinstance(written.file, io.StringIO)
    heading, reader, writer = written.file.getvalue().splitlines()[:3]
    assert "tokens/step" in heading
    assert "2.30" in writer
    assert "65%" in writer
    assert "%" not in reader


def test_blocks_that_were_held_by_nobody_are_a_warning_that_says_what_to_send() -> None:
    view = _view(_worker("prefill-0", "ready"), _worker("decode-0", "ready", WorkerLoad(orphaned_holds=3)))
    shown = status_json("127.0.0.1:1", view)
    (warning,) = [each for each in shown["warnings"] if "held by nobody" in each["found"]]
    assert (warning["part"], warning["verdict"]) == ("decode-0", "warn")
    assert "3 blocks" in warning["found"]
    assert "please report" in warning["cure"]
    assert "baton status --json" in warning["cure"]


def test_leases_that_nobody_came_for_are_told_and_no_warning() -> None:
    shown = status_json("127.0.0.1:1", _view(_worker("prefill-0", "ready", WorkerLoad(expired_leases=7))))
    assert shown["workers"][0]["expired_leases"] == 7
    assert not shown["warnings"]


def test_tokens_that_came_too_late_are_told() -> None:
    assert status_json("127.0.0.1:1", replace(_view(), late_tokens=7))["late_tokens"] == 7


def test_the_password_of_the_directory_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ready = Ready(address="127.0.0.1:1", model="demo", directory_url=DIRECTORY_URL, ray_address="", workers=())
    _say_ready("local", ready, Output(as_json=True))
    for shown in (status_json("127.0.0.1:1", _view()), json.loads(capsys.readouterr().out)):
        assert "secret" not in json.dumps(shown)
        assert "10.0.0.1:6379" in shown["directory_url"]
