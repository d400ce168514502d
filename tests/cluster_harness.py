"""A real cluster for a test: `baton up` in a process of its own, ended by pid, nothing left behind."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


@dataclass(slots=True)
class RunningCluster:
    """A cluster that answers at ``address``."""

    process: subprocess.Popen[str]
    address: str
    ready: Mapping[str, object]
    folder: Path
    descendants: list[psutil.Process] = field(default_factory=list)

    def remember_processes(self) -> None:
        """Note every process of the cluster, to see later that all are gone."""
        with suppress(psutil.NoSuchProcess):
            self.descendants.extend(psutil.Process(self.process.pid).children(recursive=True))


def write_config(folder: Path, sections: Mapping[str, Mapping[str, object]]) -> Path:
    """Write a cluster's TOML file. Values are strings, numbers and booleans, which JSON writes as TOML does."""
    path = folder / "cluster.toml"
    lines: list[str] = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in section.items())
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def running_cluster(config: Path, folder: Path) -> Iterator[RunningCluster]:
    """Run ``baton up CONFIG`` until the block ends, then stop it as Ctrl-C would and check that nothing is left."""
    log = (folder / "up.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster_launcher", "up", str(config), "--json"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=dict(os.environ, XDG_RUNTIME_DIR=str(folder), RAY_AUTH_MODE="token"),
        start_new_session=True,
    )
    try:
        ready = _wait_until_ready(process, folder / "up.log")
        cluster = RunningCluster(process=process, address=str(ready["address"]), ready=ready, folder=folder)
        cluster.remember_processes()
        yield cluster
        cluster.remember_processes()
        stop(process)
        _, alive = psutil.wait_procs(cluster.descendants, timeout=5)
        assert not alive, f"left running: {[(left.pid, left.name()) for left in alive]}"
    finally:
        stop(process)
        log.close()


def stop(process: "subprocess.Popen[str]") -> None:
    """End the cluster as Ctrl-C does; the hard way after a while."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def _wait_until_ready(process: "subprocess.Popen[str]", log: Path) -> Mapping[str, object]:
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        readable, _, _ = select.select([process.stdout], [], [], deadline - time.monotonic())
        if not readable:
            break
        line = process.stdout.readline()
        if line.startswith("{"):
            ready: Mapping[str, object] = json.loads(line)
            assert "address" in ready, f"the cluster did not start: {line}"
            return ready
        if not line and process.wait(START_TIMEOUT_S) is not None:
            break
    message = f"the cluster did not start:\n{log.read_text()[-4000:]}"
    raise AssertionError(message)
