"""An ssh server on a loopback port, with keys, configuration and home of its own: nothing of the user is touched."""

import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

START_DEADLINE_S = 20.0
SEPARATION_FOLDER = Path("/run/sshd")


def free_port() -> int:
    """Return a port below those that the kernel and Ray hand out."""
    for port in range(5200, 6300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    pytest.fail("no free port from 5200 to 6299")


def require_tools(*names: str) -> None:
    """Fail, naming the cure, when a program is missing."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    missing = [name for name in names if shutil.which(name, path=path) is None]
    if missing:
        pytest.fail(
            f"make test-deploy needs {', '.join(missing)}: "
            "apt-get install openssh-server openssh-client netcat-openbsd rsync make"
        )


class LocalSshd:
    """``environment`` is what every session gets, ``HOME`` included."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.key = folder / "client_key"

    def start(self) -> None:
        """Return when it answers."""
        for name in ("host_key", "client_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._folder / name],  # noqa: S607 - see require_tools
                check=True,
            )
        shutil.copy(self._folder / "client_key.pub", self._folder / "authorized_keys")
        if not SEPARATION_FOLDER.exists():
            SEPARATION_FOLDER.mkdir()  # sshd insists on this folder; Debian makes it at boot
        settings = [
            "ListenAddress 127.0.0.1",
            f"Port {self.port}",
            f"HostKey {self._folder}/host_key",
            f"AuthorizedKeysFile {self._folder}/authorized_keys",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "StrictModes no",
            "UsePAM no",
            "PidFile none",
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in self._environment.items()),
        ]
        configuration = self._folder / "sshd_config"
        configuration.write_text("\n".join(settings) + "\n", encoding="utf-8")
        with (self._folder / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", configuration], stderr=log)
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", self.port)):
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("sshd: " + (self._folder / "sshd.log").read_text(encoding="utf-8"))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
