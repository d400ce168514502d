"""The network between hosts: delays, partitions, broken connections.

What travels here are the messages of calls (`simulation.calls`) and of block moves (`simulation.block_moves`). Between
two hosts messages take a base delay and some jitter; one stream's messages keep their order, as TCP's do, different
streams' do not. A partition loses nothing at first: what is sent waits, as it does while TCP repeats it, and goes on
when the network heals. If that takes longer than `KEEPALIVE_S`, every connection across the cut breaks at both ends.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from simulation.history import History
from simulation.virtual_loop import Host, VirtualLoop

BASE_DELAY_S = 0.0003
JITTER_S = 0.0007
KEEPALIVE_S = 0.8
"""How long a silent path is believed in."""


class Breakable(Protocol):
    """Something that a connection between two hosts carries."""

    @property
    def ends(self) -> tuple[Host, Host]:
        """The two hosts."""
        ...

    def broken(self, reason: str) -> None:
        """Note that the connection is gone. Called on the world; each end learns of it by what this schedules there."""
        ...


@dataclass(slots=True)
class _Path:
    """One direction between two machines."""

    cut: bool = False
    extra_s: float = 0.0
    held: list[tuple[Host, Callable[..., object], tuple[Any, ...]]] = field(default_factory=list)


class Network:
    """Delivers; and breaks where it is told to."""

    def __init__(self, loop: VirtualLoop, randomness: random.Random, history: History, jitter_s: float) -> None:
        self.loop = loop
        self.history = history
        self.servers: dict[str, Any] = {}
        """What listens, by address."""
        self.jitter_s = jitter_s
        self._random = randomness.random
        self._paths: dict[tuple[str, str], _Path] = {}
        self._carried: dict[Breakable, None] = {}

    def carry(self, what: Breakable) -> None:
        """Remember something that breaks with the connection between its ends."""
        self._carried[what] = None

    def drop(self, what: Breakable) -> None:
        """Forget something that has ended."""
        self._carried.pop(what, None)

    def carried(self) -> list[Breakable]:
        """Return everything that goes on."""
        return list(self._carried)

    def delay_s(self, source: Host, target: Host) -> float:
        """Draw how long a message takes now."""
        path = self._paths.get((source.name, target.name)) if self._paths else None
        delay_s = BASE_DELAY_S + self.jitter_s * self._random()
        return delay_s if path is None else delay_s + path.extra_s

    def deliver(
        self, source: Host, target: Host, earliest_s: float, callback: Callable[..., object], *args: Any
    ) -> float:
        """Run ``callback`` on ``target`` when a message from ``source`` gets there, not before ``earliest_s``.

        Returns the moment, by which the next message of the same stream may not come earlier.
        """
        loop = self.loop
        moment_s = loop.now + BASE_DELAY_S + self.jitter_s * self._random()
        if self._paths:
            path = self._paths.get((source.name, target.name))
            if path is not None:
                if path.cut:
                    path.held.append((target, callback, args))
                    return earliest_s
                moment_s += path.extra_s
        moment_s = max(moment_s, earliest_s)
        loop.at(moment_s, target, callback, args)
        return moment_s

    @property
    def disturbed(self) -> bool:
        """Whether any path has ever been cut or slow: while none has, none need be looked up."""
        return bool(self._paths)

    def is_cut(self, source: Host, target: Host) -> bool:
        """Say whether messages from ``source`` wait."""
        path = self._paths.get((source.name, target.name))
        return path is not None and path.cut

    # What disturbs

    def slow(self, a: str, b: str, extra_s: float) -> None:
        """Let messages between two machines take so much longer; 0 ends it."""
        for key in ((a, b), (b, a)):
            self._path(key).extra_s = extra_s

    def cut(self, a: str, b: str, *, both_ways: bool) -> None:
        """Let nothing pass from ``a`` to ``b``; connections break when that lasts."""
        for key in ((a, b), (b, a)) if both_ways else ((a, b),):
            self._path(key).cut = True
        self.loop.on_host(self.loop.world, KEEPALIVE_S, self._break_if_cut, a, b)

    def heal(self, a: str, b: str) -> None:
        """Let everything pass again; what waited goes on, in order."""
        for key in ((a, b), (b, a)):
            path = self._path(key)
            path.cut = False
            held, path.held = path.held, []
            for number, (target, callback, args) in enumerate(held, start=1):
                self.loop.on_host(target, BASE_DELAY_S + number * 1e-6, callback, *args)

    def heal_all(self) -> None:
        """End every partition and every slowness."""
        for key, path in list(self._paths.items()):
            path.extra_s = 0.0
            if path.cut:
                self.heal(*key)

    def break_between(self, a: str, b: str, reason: str) -> None:
        """Reset the connections between two machines."""
        for what in [each for each in self._carried if {host.name for host in each.ends} == {a, b}]:
            what.broken(reason)

    def host_died(self, host: Host, *, silently: bool) -> None:
        """Break what ``host`` was an end of: at once where its kernel closes sockets, else by the keepalive."""
        if silently:
            self.loop.on_host(self.loop.world, KEEPALIVE_S, self._break_all_of, host, "keepalive timeout")
        else:
            self._break_all_of(host, "connection reset")

    def _break_all_of(self, host: Host, reason: str) -> None:
        for address, server in list(self.servers.items()):
            if server.host is host:
                del self.servers[address]
        for what in [each for each in self._carried if host in each.ends]:
            what.broken(reason)

    def _break_if_cut(self, a: str, b: str) -> None:
        if self._path((a, b)).cut:
            self.break_between(a, b, "keepalive timeout")
            for key in ((a, b), (b, a)):
                self._path(key).held.clear()
            self.loop.on_host(self.loop.world, KEEPALIVE_S, self._break_if_cut, a, b)

    def _path(self, key: tuple[str, str]) -> _Path:
        return self._paths.setdefault(key, _Path())
