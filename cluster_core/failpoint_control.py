"""The socket over which a test arms this process's failpoints: one JSON object a line, one line back.

::

    {"do": "arm", "name": "p.chunk.2", "action": "pause"}     the second pass from now on waits
    {"do": "wait", "name": "p.chunk", "timeout_s": 5}         answered once it has come, or when the time is up
    {"do": "release", "name": "p.chunk"}                      disarm and let go on; without a name: everything
    {"do": "list"}                                            every place, its actions, what is armed
    {"do": "counts"}                                          how often each place was passed

Whoever can talk to it can kill the process, so it listens on a UNIX socket that only its owner may open, or on a
loopback address, and only in a process that serves nobody else's machine either. It has threads of its own: an event
loop that stands still can be released.
"""

import contextlib
import ipaddress
import json
import os
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster_core.errors import PartUnavailable, SettingsError
from cluster_core.failpoints import PLACES, Action, Failpoints, Order, turn_on

VARIABLE = "BATON_FAILPOINTS"
"""The environment variable that a process's ``__main__`` passes on: ``host:port``, or the path of a UNIX socket."""

WAIT_S = 10.0
"""How long ``wait`` waits unless told otherwise."""

Message = Mapping[str, Any]


def open_control(where: str, serving_host: str) -> None:
    """Turn failpoints on and listen at ``where``; without effect where it is empty.

    Raises `SettingsError` when ``where`` or the host at which the process serves can be reached from other machines,
    `PartUnavailable` when it cannot be listened at.
    """
    if not where:
        return
    if not is_loopback(serving_host):
        message = f"{VARIABLE}: refused, for this process serves at {serving_host}; failpoints are for a loopback host"
        raise SettingsError(message)
    make = _unix_server if "/" in where else _tcp_server
    try:
        server = make(where)
    except OSError as error:
        message = f"{VARIABLE}: nobody can listen at {where} ({error.strerror or error}); name a free one"
        raise PartUnavailable(message) from error
    server.answer = Control(turn_on()).answer
    threading.Thread(target=server.serve_forever, name="failpoint control", daemon=True).start()


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach ``host``. A name but ``localhost`` might stand for anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Control:
    """Does what messages ask."""

    def __init__(self, failpoints: Failpoints) -> None:
        self._failpoints = failpoints
        self._deeds: Mapping[str, Callable[[Message], dict[str, Any]]] = {
            "arm": self._arm,
            "wait": self._wait,
            "release": self._release,
            "list": self._list,
            "counts": self._counts,
        }

    def answer(self, line: bytes) -> dict[str, Any]:
        """Return the answer to one line; ``error`` says in one line what was wrong with it."""
        try:
            message = json.loads(line)
            deed = self._deeds.get(message.get("do"))
            if deed is None:
                return {"error": f"do: must be one of {', '.join(self._deeds)}"}
            return deed(message)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return {"error": str(error) or type(error).__name__}

    def _arm(self, message: Message) -> dict[str, Any]:
        name, nth = split_name(message["name"])
        self._failpoints.arm(
            Order(
                name=name,
                action=Action(message["action"]),
                nth=nth or int(message.get("nth", 1)),
                value=float(message.get("value", 0.0)),
                times=int(message.get("times", 1)),
            )
        )
        return {}

    def _wait(self, message: Message) -> dict[str, Any]:
        name, _ = split_name(message["name"])
        timeout_s = float(message.get("timeout_s", WAIT_S))
        if self._failpoints.wait_until_hit(name, timeout_s):
            return {}
        passed = self._failpoints.passes().get(name, 0)
        return {"error": f"{name}: not hit within {timeout_s:g} s; passed {passed} times since the process began"}

    def _release(self, message: Message) -> dict[str, Any]:
        return {"hits": self._failpoints.release(split_name(message.get("name", ""))[0])}

    def _list(self, message: Message) -> dict[str, Any]:  # noqa: ARG002  # all deeds are called alike
        armed = {each.order.name: {"action": each.order.action.value, "hits": each.hits} for each in self._armed()}
        places = {name: sorted(action.value for action in actions) for name, actions in PLACES.items()}
        return {"places": places, "armed": armed}

    def _counts(self, message: Message) -> dict[str, Any]:  # noqa: ARG002  # as above
        return {"passes": self._failpoints.passes()}

    def _armed(self) -> list[Any]:
        return self._failpoints.armed()


def split_name(name: str) -> tuple[str, int]:
    """Take ``p.chunk.2`` apart: the second pass of ``p.chunk``; 0 where the name says no number."""
    stem, _, number = name.rpartition(".")
    return (stem, int(number)) if number.isdecimal() and stem else (name, 0)


class _Lines(socketserver.StreamRequestHandler):
    """Answers one connection, line by line."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # whoever asked is gone
            for line in self.rfile:
                answer = self.server.answer(line)  # type: ignore[attr-defined]  # both servers have it
                self.wfile.write(json.dumps(answer).encode() + b"\n")


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    answer: Callable[[bytes], dict[str, Any]]


class _TcpServer6(_TcpServer):
    address_family = socket.AF_INET6


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    answer: Callable[[bytes], dict[str, Any]]


def _tcp_server(where: str) -> _TcpServer:
    host, _, port = where.rpartition(":")
    if not port.isdecimal():
        message = f"{VARIABLE}: {where!r} is neither host:port nor the path of a socket"
        raise SettingsError(message)
    if not is_loopback(host):
        message = f"{VARIABLE}: refused to listen at {host}; right is a loopback address, or the path of a UNIX socket"
        raise SettingsError(message)
    kind = _TcpServer6 if ":" in host else _TcpServer
    return kind((host.strip("[]"), int(port)), _Lines)


def _unix_server(where: str) -> _UnixServer:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(Path(where).stat().st_mode):
            Path(where).unlink()  # an earlier life's, which was killed
    before = os.umask(0o177)
    try:
        return _UnixServer(where, _Lines)
    finally:
        os.umask(before)
