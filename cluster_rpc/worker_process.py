"""A worker as a process of its own or as a thread of an actor's process: what both roles share.

Without Ray: ``python -m prefill_worker CONFIG --worker-id ID --directory-url URL`` prints one JSON line when the worker
serves, and ends with 0 after SIGTERM or SIGINT, once its requests are done. With Ray: the actor's process runs the same
worker on an event loop in a thread of its own, and a worker that breaks ends the process, so that Ray starts a new one.

While a worker starts, Python's collector of cycles rests, and never looks at what it finds then: modules, weights and
compiled functions, which stay. To go through them again and again takes a tenth of a start. So ``build`` imports what
it needs when it is called.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from cluster_core.errors import OperatorError
from cluster_core.identity import WorkerId
from cluster_core.settings_reader import Document, load_document
from cluster_core.workers import WorkerRecord

log = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

EXIT_OPERATOR = 2
EXIT_BROKEN = 1

ABANDONED_S = 30.0
"""How long a thread whose worker could not start waits for somebody to ask why, and to end it. Whoever starts a worker
does; nobody does for one that Ray has started again: its process ends, so that Ray tries once more."""


class Worker(Protocol):
    """A worker of either role."""

    async def start(self) -> WorkerRecord:
        """Load, listen, register. Raises `OperatorError`."""
        ...

    async def wait_until_broken(self) -> None:
        """Return when the worker cannot go on, which is not expected to happen."""
        ...

    async def drain(self) -> None:
        """Take no new requests and wait, within a bound, until the running ones are done."""
        ...

    async def close(self) -> None:
        """End, whatever still runs."""
        ...


BuildWorker = Callable[[Document, WorkerId, str], Worker]


def run_worker(build: BuildWorker, name: str, arguments: Sequence[str]) -> int:
    """Run a worker until a signal ends it; return the process's exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=LOG_FORMAT)
    parser = argparse.ArgumentParser(prog=f"python -m {name}")
    parser.add_argument("config", type=Path, help="the cluster's TOML file")
    parser.add_argument("--worker-id", required=True, help="the worker's place in the cluster, such as prefill-0")
    parser.add_argument("--directory-url", required=True, help="where the block directory's server listens")
    options = parser.parse_args(arguments)
    gc.disable()
    try:
        worker = build(load_document(options.config), WorkerId(options.worker_id), options.directory_url)
        return asyncio.run(_serve(worker))
    except OperatorError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_OPERATOR


async def _serve(worker: Worker) -> int:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    broken: asyncio.Task[None] | None = None
    try:
        starting = asyncio.create_task(worker.start())
        told_to_end = asyncio.create_task(ended.wait())
        await asyncio.wait({starting, told_to_end}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        record = starting.result()
        _collect_from_now_on()
        sys.stdout.write(json.dumps(describe(record)) + "\n")
        sys.stdout.flush()
        broken = asyncio.create_task(worker.wait_until_broken())
        await asyncio.wait({told_to_end, broken}, return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            return EXIT_BROKEN
        await worker.drain()
        return 0
    finally:
        if broken is not None:
            broken.cancel()
        await worker.close()


def _collect_from_now_on() -> None:
    gc.freeze()
    gc.enable()


def end_process(code: int) -> NoReturn:
    """End this process with ``code`` and wait for no thread: an engine step that hangs would keep it for ever."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    os._exit(code)


def describe(record: WorkerRecord) -> dict[str, Any]:
    """Return the record as plain JSON values."""
    return {**dataclasses.asdict(record), "role": record.role.value}


def reachable_host(host: str) -> str:
    """Return ``host``, or for ``auto`` the address by which other machines reach this one."""
    if host != "auto":
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a datagram socket only looks its route up; nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


class WorkerThread:
    """Runs a worker on an event loop in a daemon thread of this process.

    ``leave`` ends the process when the worker breaks or cannot start.
    """

    def __init__(self, build: Callable[[], Worker], leave: Callable[[int], None] = os._exit) -> None:
        self._build = build
        self._leave = leave
        self.record: Future[WorkerRecord] = Future()
        """Done when the worker serves, or with what kept it from that."""
        self._ended = threading.Event()
        self._told_to_end = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Begin to start the worker."""
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=LOG_FORMAT)
        self._thread.start()

    def stop(self) -> None:
        """Drain and close the worker, once it has started; return when that is done."""
        self._told_to_end.set()
        if self.record.exception() is None and self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop is closed: the worker has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        self._ended.wait()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            log.exception("the worker ended")
            if self.record.done():
                self._leave(EXIT_BROKEN)
            else:
                self.record.set_exception(error)
        finally:
            self._ended.set()
        if self.record.exception() is not None and not self._told_to_end.wait(ABANDONED_S):
            self._leave(EXIT_OPERATOR)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        gc.disable()
        worker = self._build()
        try:
            record = await worker.start()
            _collect_from_now_on()
            self.record.set_result(record)
            broken = asyncio.create_task(worker.wait_until_broken())
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait({broken, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                self._leave(EXIT_BROKEN)
            broken.cancel()
            await worker.drain()
        finally:
            await worker.close()
