"""Processes that a benchmark starts beside itself: modules of this checkout that print lines and obey lines."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ANSWER_TIMEOUT_S = 120.0
INPUT_END_S = 1.0
"""How long a process has to end by itself when its input does, as those do that obey lines."""
STOP_TIMEOUT_S = 60.0


class PeerProcess:
    """A running process; lines go in and come out. Made by `running`."""

    def __init__(self, process: "subprocess.Popen[bytes]", name: str) -> None:
        self._process = process
        self._name = name
        self._unread = b""

    def say(self, line: str) -> None:
        """Write one line to the process."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Return the next line it prints. Raises `RuntimeError` when it ends or stays silent."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            readable, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            some = os.read(pipe, 65536) if readable else b""
            if not some:
                message = f"{self._name} {'ended' if readable else f'said nothing for {timeout_s} s'}"
                raise RuntimeError(message)
            self._unread += some
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


@contextmanager
def running(
    module: str, *arguments: str, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[PeerProcess]:
    """Run ``python -m MODULE ARGUMENTS`` until the block ends.

    Then end its input, after a while the process, as Ctrl-C does, and after a longer one by force.
    """
    with running_command(
        [sys.executable, "-m", module, *arguments], log=log, environment=dict(os.environ) | dict(environment or {})
    ) as process:
        yield PeerProcess(process, module)


@contextmanager
def running_command(
    command: Sequence[str], *, log: Path | None, environment: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in the checkout's root; what it writes on its standard error goes to ``log``, if there is one.

    SIGTERM, from now on, ends a benchmark as Ctrl-C does: with everything that it started.
    """
    signal.signal(signal.SIGTERM, _leave)
    errors = log.open("wb") if log else None
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd=CHECKOUT,
        env=dict(environment),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)
        if errors:
            errors.close()


async def orders() -> AsyncIterator[str]:
    """Yield, in a process that was started here, the lines said to it.

    Ends with the input, so that nobody outlives a benchmark that was killed, and at SIGINT or SIGTERM.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, reader.feed_eof)
    while line := await reader.readline():
        yield line.decode()


def _leave(_signal: int, _frame: object) -> None:
    sys.exit(128 + signal.SIGTERM)


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(INPUT_END_S)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
