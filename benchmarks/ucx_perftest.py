"""UCX's own measuring program, from the `libucx` wheel: two processes on loopback, the same transports as ours.

It sends one buffer again and again, which the caches hold, and spins while it waits: a peer that is hard to reach.
"""

import importlib.util
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

TIMEOUT_S = 60.0
_HOST = "127.0.0.1"
_PORTS_TRIED = 3


def bandwidth(tls: str, block_bytes: int, total_bytes: int, in_flight: int) -> float:
    """Return GB/s of tagged messages (``tag_bw``)."""
    count = max(64, total_bytes // block_bytes)
    options = ["-t", "tag_bw", "-s", str(block_bytes), "-n", str(count), "-w", str(in_flight), "-O", str(in_flight)]
    return _final_figures(tls, options)[-3] * 2**20 / 1e9  # its MB are of 2^20 bytes


def round_trip(tls: str, message_bytes: int, count: int, wait: str) -> float:
    """Return the median round trip in microseconds (``tag_lat``); ``wait`` is ``poll`` or ``sleep``."""
    options = ["-t", "tag_lat", "-s", str(message_bytes), "-n", str(count), "-w", "100", "-E", wait]
    return 2 * _final_figures(tls, options)[1]  # it prints half a round trip


def _final_figures(tls: str, options: Sequence[str]) -> list[float]:
    """Run both sides and return the numbers of the last line.

    They are: iterations; median, mean and overall microseconds; then bandwidth and messages, each mean and overall.
    """
    folder = _wheel()
    program = str(folder / "bin" / "ucx_perftest")
    ours = {
        "LD_LIBRARY_PATH": str(folder / "lib"),
        "UCX_TLS": tls,
        "UCX_RNDV_THRESH": "8192",
        "UCX_LOG_LEVEL": "error",
    }
    environment = os.environ | ours
    with _server(program, environment) as (server, port):
        client = subprocess.run(
            [program, _HOST, "-p", port, "-f", *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if client.returncode != 0:
            message = f"ucx_perftest {' '.join(options)}: {client.stderr.strip() or client.stdout.strip()}"
            raise RuntimeError(message)
        server.wait(TIMEOUT_S)
    numbers = [word for word in client.stdout.splitlines()[-1].split() if word[0].isdigit()]
    return [float(word) for word in numbers]


@contextmanager
def _server(program: str, environment: Mapping[str, str]) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Run the side that listens until the block ends; somebody else may take its port first, so it may need more."""
    for _ in range(_PORTS_TRIED):
        port = str(_free_port())
        with subprocess.Popen([program, "-p", port], env=environment, stdout=subprocess.DEVNULL) as server:
            try:
                if _listens(server):
                    yield server, port
                    return
            finally:
                server.kill()
    message = "ucx_perftest does not listen"
    raise RuntimeError(message)


def _wheel() -> Path:
    found = importlib.util.find_spec("libucx")
    if found is None or found.origin is None:
        message = "ucx_perftest comes with the package libucx-cu12, which is not installed"
        raise RuntimeError(message)
    return Path(found.origin).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(server: "subprocess.Popen[bytes]") -> bool:
    """Wait until the process listens; False when it ended, or took too long."""
    deadline = time.monotonic() + TIMEOUT_S
    process = psutil.Process(server.pid)
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            if any(each.status == psutil.CONN_LISTEN for each in process.net_connections("tcp")):
                return True
        time.sleep(0.005)
    return False
