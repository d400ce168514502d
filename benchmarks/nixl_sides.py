"""NIXL by its own Python API, with its own UCX, in two processes that load nothing of ours but the lists of blocks.

It is set up as it was found to be fastest on one host: shared memory and CMA without TCP, no error handling (with it,
its UCX moves blocks by TCP), and no progress threads, which spin, one core for each process, with or without work.

The **mover** initiates all, the **holder** waits; both spin. Descriptors of all blocks are prepared beforehand, as
NIXL's users do; a request is made, posted and polled for each lot. The clock is everybody's: from the moment at which
the side with the blocks begins to the moment at which the other side knows that it has them all. So a READ starts with
a notification from the holder, which has just stamped it; a WRITE ends with one that the holder stamps when it comes.

``python -m benchmarks.nixl_sides ROLE POOL_BYTES`` prints one line about its pools and its agent, is told the other's,
and obeys lines of JSON (see `NixlPair`).
"""

import asyncio
import dataclasses
import importlib
import importlib.util
import json
import os
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import numpy as np

from benchmarks.block_lots import IN_FLIGHT, LOTS_OF_A_STREAM, LotKind, Places, check, new_pool, places
from benchmarks.peer_process import PeerProcess, orders, running

PACKAGES = ("nixl", "nixl_cu12", "nixl_cu13")
"""Under which of these names its wheels lie depends on the CUDA that they are made for; none needs one."""
OPERATIONS = ("READ", "WRITE")
READY = "ready"
_MOMENT = struct.Struct("d")
_MEMORY = "DRAM"
_BACKEND = "UCX"
_PARAMETERS = {"ucx_error_handling_mode": "none"}
_TLS = "posix,cma,self"


def installed() -> bool:
    """Whether NIXL is here."""
    return any(importlib.util.find_spec(name) is not None for name in PACKAGES)


class NixlPair:
    """Both processes, seen from the benchmark's own."""

    def __init__(self, mover: PeerProcess, holder: PeerProcess, pool_bytes: int) -> None:
        self._mover = mover
        self._holder = holder
        self._pool_bytes = pool_bytes
        self._numbers = count()

    async def gb_s(self, kind: LotKind, operation: str, *, streaming: bool = False) -> float:
        """Return what ``operation`` moves in a second: one lot after another, or several under way at once."""
        kind = kind.fitting(self._pool_bytes)
        order = {
            "operation": operation,
            "kind": dataclasses.asdict(kind),
            "first": next(self._numbers) * 1000,
            "streaming": streaming,
        }
        for side in (self._holder, self._mover):
            side.say(json.dumps(order))
        return kind.lot_bytes / float(await asyncio.to_thread(self._mover.hear)) / 1e9


@contextmanager
def nixl_pair(pool_bytes: int) -> Iterator[NixlPair]:
    """Run both processes until the block ends."""
    environment = {"UCX_TLS": _TLS, "UCX_LOG_LEVEL": "error", "NIXL_LOG_LEVEL": "ERROR"}
    with ExitStack() as exits:
        holder, mover = (
            exits.enter_context(running("benchmarks.nixl_sides", role, str(pool_bytes), environment=environment))
            for role in ("holder", "mover")
        )
        facts = [_first_line(side, "{") for side in (holder, mover)]
        for side, other in ((mover, facts[0]), (holder, facts[1])):
            side.say(other)
        for side in (mover, holder):
            _first_line(side, READY)
        yield NixlPair(mover, holder, pool_bytes)


def _first_line(process: PeerProcess, beginning: str) -> str:
    """Return the first line that begins so: the library prints lines of its own before it."""
    while not (line := process.hear()).startswith(beginning):
        pass
    return line


class _Agent:
    """An agent with its pools: one to move blocks from, which never changes, and one to move them to."""

    def __init__(self, name: str, pool_bytes: int) -> None:
        package = next(name for name in PACKAGES if importlib.util.find_spec(name) is not None)
        api: Any = importlib.import_module(f"{package}._api")
        self.pool_bytes = pool_bytes
        self.sources = new_pool(pool_bytes)
        self.targets = new_pool(pool_bytes)
        self.agent = api.nixl_agent(name, api.nixl_agent_config(backends=[], enable_prog_thread=False))
        self.agent.create_backend(_BACKEND, _PARAMETERS)
        for pool in (self.sources, self.targets):
            self.agent.register_memory([(pool.ctypes.data, pool_bytes, 0, "")], _MEMORY)
        self._other = ""

    def facts(self) -> str:
        """Return what the other agent must know."""
        facts = {
            "agent": self.agent.get_agent_metadata().hex(),
            "sources": self.sources.ctypes.data,
            "targets": self.targets.ctypes.data,
        }
        return json.dumps(facts)

    def meet(self, facts: dict[str, Any]) -> str:
        """Take in the other agent; return its name."""
        name = self.agent.add_remote_agent(bytes.fromhex(facts["agent"]))
        self._other = name.decode() if isinstance(name, bytes) else name
        return self._other

    def tell(self, moment: float) -> None:
        """Notify the other agent of a moment."""
        self.agent.send_notif(self._other, _MOMENT.pack(moment))

    def hear(self) -> bytes:
        """Spin until the other agent notifies this one."""
        return self.hear_some()[0]

    def hear_some(self) -> list[bytes]:
        """Spin until the other agent notifies this one; return all that it said."""
        while not (told := self.agent.get_new_notifs().get(self._other)):
            pass
        messages: list[bytes] = told
        return messages


class _Holder:
    """The agent that waits."""

    def __init__(self, mine: _Agent, facts: dict[str, Any]) -> None:
        self._mine = mine
        mine.meet(facts)

    def obey(self, kind: LotKind, operation: str, first: int) -> None:
        """Say of each lot when it may be read, or when it has been written."""
        for number in range(first, first + kind.lots_a_turn):
            self._mine.hear()
            moment = time.perf_counter()
            if operation == "WRITE":
                check(self._mine.targets, kind, *places(kind, number, self._mine.pool_bytes))
            self._mine.tell(moment)

    def obey_streaming(self, kind: LotKind, operation: str, first: int) -> None:
        """Say when lots may be read, or when all have been written."""
        if operation == "READ":
            self._mine.hear()
            self._mine.tell(time.perf_counter())
            return
        written = 0
        while written < LOTS_OF_A_STREAM:
            written += len(self._mine.hear_some())
        moment = time.perf_counter()
        last = first + LOTS_OF_A_STREAM - 1
        check(self._mine.targets, kind, *places(kind, last, self._mine.pool_bytes))
        self._mine.tell(moment)


class _Mover:
    """The agent that moves lots."""

    def __init__(self, mine: _Agent, facts: dict[str, Any]) -> None:
        self._mine = mine
        self._agent = mine.agent
        self._remote = mine.meet(facts)
        self._sides = {
            "READ": (mine.targets.ctypes.data, facts["sources"]),
            "WRITE": (mine.sources.ctypes.data, facts["targets"]),
        }
        self._prepared: dict[tuple[str, int], tuple[Any, Any]] = {}

    def obey(self, kind: LotKind, operation: str, first: int) -> None:
        """Move as many lots as a turn has; print the median of their seconds."""
        self._prepare(operation, kind)
        move = self._read if operation == "READ" else self._write
        lots = [
            (kind, *places(kind, number, self._mine.pool_bytes)) for number in range(first, first + kind.lots_a_turn)
        ]
        _say(str(statistics.median(move(*lot) for lot in lots)))

    def obey_streaming(self, kind: LotKind, operation: str, first: int) -> None:
        """Move the lots of a stream; print the seconds that each took in the mean."""
        self._prepare(operation, kind)
        numbers = range(first, first + LOTS_OF_A_STREAM)
        lists = [places(kind, number, self._mine.pool_bytes) for number in numbers]
        here, there = (1, 0) if operation == "READ" else (0, 1)
        sides = [(each[here].astype(np.int32), each[there].astype(np.int32)) for each in lists]
        if operation == "READ":
            self._mine.tell(0.0)  # it is awaited
            (began,) = _MOMENT.unpack(self._mine.hear())
        else:
            began = time.perf_counter()
        moved: list[Any] = []
        under_way: deque[Any] = deque()
        for side in sides:
            if len(under_way) == IN_FLIGHT:
                moved.append(self._wait(*under_way.popleft()))
            under_way.append(self._begin(operation, kind, *side))
        moved.extend(self._wait(*one) for one in under_way)
        ended = time.perf_counter()
        if operation == "WRITE":
            (ended,) = _MOMENT.unpack(self._mine.hear())
        for request in moved:
            self._agent.release_xfer_handle(request)
        if operation == "READ":
            check(self._mine.targets, kind, *lists[-1])
        _say(str((ended - began) / len(lists)))

    def _prepare(self, operation: str, kind: LotKind) -> None:
        if (operation, kind.size) not in self._prepared:
            ours, theirs = self._sides[operation]
            sides = self._blocks("NIXL_INIT_AGENT", ours, kind.size), self._blocks(self._remote, theirs, kind.size)
            self._prepared[operation, kind.size] = sides

    def _blocks(self, agent: str, address: int, size: int) -> Any:
        """Prepare all blocks of one size of a pool."""
        rows = np.zeros((self._mine.pool_bytes // size, 3), np.uint64)
        rows[:, 0] = np.arange(len(rows), dtype=np.uint64) * np.uint64(size) + np.uint64(address)
        rows[:, 1] = size
        return self._agent.prep_xfer_dlist(agent, rows, _MEMORY)

    def _read(self, kind: LotKind, sources: Places, targets: Places) -> float:
        here, there = targets.astype(np.int32), sources.astype(np.int32)
        self._mine.tell(0.0)  # it is awaited
        (began,) = _MOMENT.unpack(self._mine.hear())
        request = self._move("READ", kind, here, there)
        taken: float = time.perf_counter() - began
        self._agent.release_xfer_handle(request)
        check(self._mine.targets, kind, sources, targets)
        return taken

    def _write(self, kind: LotKind, sources: Places, targets: Places) -> float:
        here, there = sources.astype(np.int32), targets.astype(np.int32)
        began = time.perf_counter()
        request = self._move("WRITE", kind, here, there)
        (came,) = _MOMENT.unpack(self._mine.hear())
        self._agent.release_xfer_handle(request)
        taken: float = came - began
        return taken

    def _move(self, operation: str, kind: LotKind, here: Any, there: Any) -> Any:
        return self._wait(*self._begin(operation, kind, here, there))

    def _begin(self, operation: str, kind: LotKind, here: Any, there: Any) -> tuple[Any, str]:
        local, remote = self._prepared[operation, kind.size]
        told = b"written" if operation == "WRITE" else b""
        request = self._agent.make_prepped_xfer(operation, local, here, remote, there, told)
        return request, self._agent.transfer(request)

    def _wait(self, request: Any, state: str) -> Any:
        while state == "PROC":
            state = self._agent.check_xfer_state(request)
        if state != "DONE":
            message = f"NIXL says {state}"
            raise RuntimeError(message)
        return request


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(role: str, pool_bytes: int) -> None:
    """Obey until the input ends."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0 if role == "holder" else -1]})  # two that spin on one core hear nothing for long
    mine = _Agent(role, pool_bytes)
    _say(mine.facts())
    side: _Holder | _Mover | None = None
    async for line in orders():
        order = json.loads(line)
        if side is None:
            side = _Holder(mine, order) if role == "holder" else _Mover(mine, order)
            _say(READY)
        else:
            obey = side.obey_streaming if order["streaming"] else side.obey
            obey(LotKind(**order["kind"]), order["operation"], order["first"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
