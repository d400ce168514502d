import json
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_core import failpoints
from cluster_core.errors import PartUnavailable, SettingsError
from cluster_core.failpoint_control import is_loopback, open_control, split_name
from cluster_core.failpoints import are_on, hit


@pytest.fixture(autouse=True)
def own_failpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_present", None)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a socket can be: the name of one may not be long."""
    monkeypatch.chdir(tmp_path)
    return "./control"


class Line:
    """One connection to a control socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._stream = connected.makefile("rwb")

    def ask(self, **message: object) -> dict[str, Any]:
        return self.say(json.dumps(message))

    def say(self, text: str) -> dict[str, Any]:
        self._stream.write(text.encode() + b"\n")
        self._stream.flush()
        answer: dict[str, Any] = json.loads(self._stream.readline())
        return answer


@pytest.fixture
def line(path: str) -> Iterator[Line]:
    open_control(path, "127.0.0.1")
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(path)
        yield Line(connected)


def test_arm_wait_release(line: Line) -> None:
    assert line.ask(do="arm", name="d.step.2", action="pause") == {}
    hit("d.step")
    thread = threading.Thread(target=hit, args=("d.step",))
    thread.start()
    assert line.ask(do="wait", name="d.step.2", timeout_s=5) == {}
    assert thread.is_alive()
    assert line.ask(do="list")["armed"] == {"d.step": {"action": "pause", "hits": 1}}
    assert line.ask(do="release", name="d.step") == {"hits": 1}
    thread.join(5.0)
    assert not thread.is_alive()
    assert line.ask(do="counts") == {"passes": {"d.step": 2}}


def test_what_was_not_hit_is_an_error_that_says_so(line: Line) -> None:
    line.ask(do="arm", name="d.step.2", action="pause")
    hit("d.step")
    answer = line.ask(do="wait", name="d.step", timeout_s=0)
    assert answer == {"error": "d.step: not hit within 0 s; passed 1 times since the process began"}
    assert line.ask(do="release") == {"hits": 0}


def test_a_wrong_line_is_answered_and_harms_nothing(line: Line) -> None:
    assert line.ask(do="dance") == {"error": "do: must be one of arm, wait, release, list, counts"}
    assert line.ask(do="arm", name="p.seal", action="pause")["error"].startswith("p.seal: pause makes no sense there")
    assert "error" in line.ask(do="arm", name="p.seal", action="tickle")
    assert "error" in line.ask(do="arm")
    assert "error" in line.say("[1]")
    assert "error" in line.say("{")
    assert set(line.ask(do="list")["places"]) == set(failpoints.PLACES)


def test_the_socket_is_its_owners_and_takes_the_place_of_a_dead_one(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    open_control(path, "localhost")
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert are_on()


@pytest.mark.parametrize("where", ["127.0.0.1", "[::1]"])
def test_a_loopback_address_will_do(where: str) -> None:
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((where.strip("[]"), 0))
        except OSError:
            pytest.skip(f"this machine has no {where}")
        port = probe.getsockname()[1]
    open_control(f"{where}:{port}", "127.0.0.1")
    with socket.create_connection((where.strip("[]"), port), timeout=5) as connected:
        assert Line(connected).ask(do="counts") == {"passes": {}}


@pytest.mark.parametrize("where", ["0.0.0.0:7000", "192.0.2.1:7000", "example.org:7000", ":7000", "[::]:7000"])
def test_what_others_can_reach_is_refused(where: str) -> None:
    with pytest.raises(SettingsError, match=r"^BATON_FAILPOINTS: refused to listen at "):
        open_control(where, "127.0.0.1")
    assert not are_on()


@pytest.mark.parametrize("host", ["auto", "0.0.0.0", "10.0.0.1", "worker-3"])  # noqa: S104  # refused
def test_a_process_that_serves_others_is_refused(host: str, path: str) -> None:
    with pytest.raises(SettingsError, match=f"^BATON_FAILPOINTS: refused, for this process serves at {host};"):
        open_control(path, host)
    assert not are_on()


def test_a_place_that_cannot_be_listened_at_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PartUnavailable, match=r"^BATON_FAILPOINTS: nobody can listen at "):
        open_control(str(tmp_path / "missing" / "control"), "127.0.0.1")
    with pytest.raises(SettingsError, match="neither host:port nor the path of a socket"):
        open_control("nonsense", "127.0.0.1")
    assert not are_on()


def test_without_the_variable_there_are_none() -> None:
    open_control("", "0.0.0.0")  # noqa: S104  # nothing listens
    assert not are_on()


def test_names_and_numbers() -> None:
    assert split_name("p.chunk.12") == ("p.chunk", 12)
    assert split_name("p.chunk") == ("p.chunk", 0)
    assert split_name("") == ("", 0)


def test_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("", "auto", "0.0.0.0", "::", "10.1.1.1")] == [False] * 5  # noqa: S104  # told apart
