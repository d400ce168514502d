"""A worker as a thread of an actor's process, and as a process of its own."""

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster_core.errors import ModelFolderError, OperatorError
from cluster_core.identity import Incarnation, Role, WorkerId
from cluster_core.layout import KvLayout, ModelIdentity
from cluster_core.settings_reader import Document
from cluster_core.workers import WorkerRecord
from cluster_rpc import worker_process
from cluster_rpc.worker_process import EXIT_BROKEN, EXIT_OPERATOR, WorkerThread, reachable_host, run_worker

RECORD = WorkerRecord(
    worker_id=WorkerId("prefill-0"),
    incarnation=Incarnation(7),
    role=Role.PREFILL,
    address="127.0.0.1:1",
    transport="loopback",
    model=ModelIdentity(name="m", fingerprint="f", vocab_size=10, max_context_tokens=20),
    layout=KvLayout(layers=1, kv_heads=1, head_dim=2, block_size_tokens=4, dtype="float32"),
    total_blocks=3,
    pid=1,
)


def must_not_leave(code: int) -> None:
    pytest.fail(f"left with {code}")


class RecordedWorker:
    """Notes what is asked of it."""

    def __init__(self, refusal: OperatorError | None = None, *, breaks: bool = False) -> None:
        self.asked: list[str] = []
        self._refusal = refusal
        self._breaks = breaks

    async def start(self) -> WorkerRecord:
        self.asked.append("start")
        if self._refusal is not None:
            raise self._refusal
        return RECORD

    async def wait_until_broken(self) -> None:
        if not self._breaks:
            await asyncio.Event().wait()

    async def drain(self) -> None:
        self.asked.append("drain")

    async def close(self) -> None:
        self.asked.append("close")


def test_a_thread_tells_the_record_and_drains_before_it_ends() -> None:
    worker = RecordedWorker()
    thread = WorkerThread(lambda: worker, leave=must_not_leave)
    thread.start()
    assert thread.record.result(timeout=10) == RECORD
    thread.stop()
    assert worker.asked == ["start", "drain", "close"]
    thread.stop()


def test_a_worker_that_breaks_ends_the_process() -> None:
    left: queue.Queue[int] = queue.Queue()
    thread = WorkerThread(lambda: RecordedWorker(breaks=True), leave=left.put)
    thread.start()
    assert left.get(timeout=10) == EXIT_BROKEN


def test_what_kept_a_worker_from_starting_is_told_and_the_process_stays() -> None:
    worker = RecordedWorker(ModelFolderError("config.json: missing"))
    thread = WorkerThread(lambda: worker, leave=must_not_leave)
    thread.start()
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        thread.record.result(timeout=10)
    thread.stop()
    assert worker.asked == ["start", "close"]


def test_a_process_whose_worker_could_not_start_ends_where_nobody_asks_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "ABANDONED_S", 0.0)
    left: queue.Queue[int] = queue.Queue()
    thread = WorkerThread(lambda: RecordedWorker(ModelFolderError("config.json: missing")), leave=left.put)
    thread.start()
    assert left.get(timeout=10) == EXIT_OPERATOR


def run(worker: RecordedWorker, folder: Path) -> int:
    config = folder / "cluster.toml"
    config.write_text("[prefill]\n")

    def build(document: Document, worker_id: WorkerId, directory_url: str) -> RecordedWorker:
        assert (document, worker_id, directory_url) == ({"prefill": {}}, "prefill-0", "unix:///d")
        return worker

    arguments = [str(config), "--worker-id", "prefill-0", "--directory-url", "unix:///d"]
    return run_worker(build, "prefill_worker", arguments)


class TerminatedOnceReady(RecordedWorker):
    """The process gets SIGTERM as soon as the worker serves."""

    async def wait_until_broken(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()


def test_a_process_prints_one_ready_line_and_drains_on_sigterm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = TerminatedOnceReady()
    assert run(worker, tmp_path) == 0
    assert worker.asked == ["start", "drain", "close"]
    (line,) = capsys.readouterr().out.splitlines()
    ready = json.loads(line)
    assert {key: ready[key] for key in ("worker_id", "address", "pid", "incarnation", "role")} == {
        "worker_id": "prefill-0",
        "address": "127.0.0.1:1",
        "pid": 1,
        "incarnation": 7,
        "role": "prefill",
    }


def test_a_process_whose_worker_breaks_ends_with_an_error(tmp_path: Path) -> None:
    assert run(RecordedWorker(breaks=True), tmp_path) == EXIT_BROKEN


def test_a_process_ends_although_a_thread_hangs() -> None:
    lines = (
        "import threading",
        "from cluster_rpc.worker_process import end_process",
        "threading.Thread(target=threading.Event().wait).start()",
        "print('served', end='')",
        "end_process(3)",
    )
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (3, b"served")


def test_an_operators_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(RecordedWorker(ModelFolderError("config.json: missing")), tmp_path) == EXIT_OPERATOR
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()[-1]) == ("", "config.json: missing")


def test_a_host_is_taken_as_it_is_unless_it_is_auto() -> None:
    assert reachable_host("10.0.0.7") == "10.0.0.7"
    assert reachable_host("auto").count(".") == 3
