"""A process of ours with failpoints: started, armed, waited for, killed by its own handle."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster_core.failpoint_control import VARIABLE

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class ArmedProcess:
    """``python -m`` a role, whose failpoints are armed over a UNIX socket."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name = name
        self.ready: dict[str, Any] = {}
        """What the process has said of itself once it serves."""
        self._command = [sys.executable, "-m", *command]
        self._socket = folder / f"{name}.sock"
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """Where it serves gRPC."""
        return str(self.ready["address"])

    @property
    def alive(self) -> bool:
        """Whether it has neither ended nor been killed."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; `until_ready` says when it serves."""
        with self._log.open("a") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=dict(os.environ, OMP_NUM_THREADS="1") | {VARIABLE: str(self._socket)},
            )

    def until_ready(self) -> None:
        """Wait until it serves."""
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        line = self._process.stdout.readline() if readable else ""
        assert line, f"{self.name} did not start:\n{self._log.read_text()[-4000:]}"
        self.ready = json.loads(line)

    def kill(self) -> None:
        """Kill it with SIGKILL and see that it was that which ended it."""
        assert self._process is not None
        self._process.kill()
        ended_with = self._process.wait()
        self._close_output()
        assert ended_with == -signal.SIGKILL, f"{self.name} ended by itself before it was killed: {ended_with}"

    def stop(self) -> None:
        """End it as an operator does; the hard way after a while."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._close_output()

    async def ask(self, **message: object) -> dict[str, Any]:
        """Ask the control socket for one thing. Raises `AssertionError` with what it has against it."""
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            writer.write(json.dumps(message).encode() + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
        assert line, f"{self.name} died while it was asked {message}"
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, f"{self.name}: {answer['error']}"
        return answer

    def _close_output(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
