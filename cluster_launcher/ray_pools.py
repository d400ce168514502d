"""The two pools: how many workers of each role run, changed while the cluster serves.

Life of a worker here: created -> described (its process serves) -> ready (the router lists it) -> drained (the router
sends nothing more, running requests finish, promised blocks are fetched) -> ended. A worker that dies is started again
by Ray under its name with a new incarnation; one that keeps dying is given up and reported.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from cluster_core.errors import BatonError, InvalidField
from cluster_core.identity import Role, WorkerId
from cluster_launcher.pool_plan import plan_pool
from cluster_launcher.progress import Progress
from cluster_launcher.restart_budget import RestartBudget
from cluster_launcher.settings import PRIVATE_RAY_WORKERS, ClusterSettings
from cluster_launcher.worker_actors import WorkerActors, worker_failed
from cluster_rpc.answers import ClusterView, WorkerView

_CALM_LOOKS = 2
"""A drained worker must look idle so many times in a row: a request may be on its way to it during the first."""


class RouterView(Protocol):
    """What the pools need of the router; `BatonClient` satisfies it."""

    async def list_workers(self) -> ClusterView:
        """List the workers as the router sees them now."""
        ...

    async def drain(self, worker_id: WorkerId) -> bool:
        """Send the worker nothing more; false when the router does not know it."""
        ...


class RayPools:
    """Implements the router's `PoolController`."""

    def __init__(
        self,
        actors: WorkerActors,
        settings: ClusterSettings,
        progress: Progress,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_period_s: float = 0.25,
    ) -> None:
        """Only remember. ``look_period_s`` is the pause between two looks at a worker that something is awaited of."""
        self._actors = actors
        self._settings = settings
        self._progress = progress
        self._clock = clock
        self._look_period_s = look_period_s
        self._router: RouterView | None = None
        self._running: dict[WorkerId, Role] = {}
        self._budgets: dict[WorkerId, RestartBudget] = {}
        self._changing = asyncio.Lock()
        self._leaving: asyncio.Task[None] | None = None
        self._restarts_seen: dict[WorkerId, int] = {}
        self._unseen: set[WorkerId] = set()

    @property
    def running(self) -> Mapping[WorkerId, Role]:
        """The workers that are meant to run, those that Ray is restarting among them."""
        return self._running

    async def start(self) -> list[Mapping[str, Any]]:
        """Start the pools of the configuration, all workers at once. Returns their registrations."""
        async with self._changing:
            wanted = {Role.PREFILL: self._settings.prefill, Role.DECODE: self._settings.decode}
            names = [(name, role) for role, count in wanted.items() for name in plan_pool(role, (), count).start]
            return await self._create(names)

    async def attach(self, router: RouterView) -> None:
        """Wait until ``router`` lists every worker; from then on pools can change."""
        self._router = router
        await self._wait_until_ready(list(self._running))

    async def set_pools(self, prefill: int, decode: int) -> tuple[int, int]:
        """Bring the pools to these sizes and return what runs then. Serving goes on meanwhile.

        Grows before it shrinks, so that there is always somebody to serve. Raises `InvalidField` for a size that
        cannot run, and `PartUnavailable` when a new worker does not come up: the pools are then as they were. A caller
        that goes away meanwhile stops the growing, but not the shrinking: a drained worker would serve nobody.
        """
        for key, count, least in (("prefill", prefill, 0), ("decode", decode, 1)):
            if not least <= count <= PRIVATE_RAY_WORKERS:
                raise InvalidField(key, f"{count} workers; from {least} to {PRIVATE_RAY_WORKERS} can run")
        async with self._changing:
            if self._leaving is not None:
                await asyncio.wait([self._leaving])  # a caller that went away left it to us
            unwell = await self._unwell()
            changes = {
                role: plan_pool(role, [name for name, kind in self._running.items() if kind is role], count, unwell)
                for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode))
            }
            names = [(name, role) for role, change in changes.items() for name in change.start]
            if names:
                await self._create(names)
                try:
                    await self._wait_until_ready([name for name, _ in names])
                except BaseException:
                    await self._end([name for name, _ in names])
                    raise
            leaving = [name for change in changes.values() for name in change.stop]
            self._leaving = asyncio.ensure_future(_all(self._drain_and_end(name) for name in leaving))
            await asyncio.shield(self._leaving)
            return self._count(Role.PREFILL), self._count(Role.DECODE)

    async def watch(self) -> None:
        """Look after restarts until cancelled: say each one, and give up a worker whose budget is spent."""
        while True:
            for worker_id in list(self._running):
                try:
                    await self._look_after(worker_id)
                except Exception as error:  # noqa: BLE001 - whatever Ray raises: serving needs no look at Ray
                    if worker_id in self._running and worker_id not in self._unseen:
                        self._unseen.add(worker_id)
                        self._progress.note(f"{worker_id}: Ray does not say how it is ({_last_line(error)})")
            await asyncio.sleep(self._look_period_s * 4)

    async def close(self) -> None:
        """End every worker, those that are being drained among them."""
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.wait([self._leaving])
        await self._end(list(self._running))

    async def _look_after(self, worker_id: WorkerId) -> None:
        life = await self._actors.life(worker_id)
        if worker_id not in self._running:
            return  # it was ended while Ray was asked
        self._unseen.discard(worker_id)
        if life.restarts > self._restarts_seen.get(worker_id, 0):
            self._progress.note(f"{worker_id} died and is being started again (restart {life.restarts})")
        self._restarts_seen[worker_id] = life.restarts
        within_budget = self._budgets[worker_id].observe(life.restarts, self._clock())
        if not within_budget or life.dead:
            await self._give_up(worker_id)

    async def _create(self, names: Sequence[tuple[WorkerId, Role]]) -> list[Mapping[str, Any]]:
        tasks: list[asyncio.Future[Mapping[str, Any]]] = []
        try:
            for name, role in names:
                self._running[name] = role
                self._budgets[name] = RestartBudget(self._settings.restart_budget, self._settings.restart_window_s)
                self._ask_for(name, role)
            tasks.extend(asyncio.ensure_future(self._come_up(name)) for name, _ in names)
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end([name for name, _ in names])
            raise

    def _ask_for(self, worker_id: WorkerId, role: Role) -> None:
        try:
            self._actors.create(worker_id, role)
        except Exception as error:  # Ray refuses in many kinds, all of them meaning the same to the user
            raise worker_failed(worker_id, _last_line(error)) from error

    async def _come_up(self, worker_id: WorkerId) -> Mapping[str, Any]:
        """Wait for the worker's own word that it serves, for its death, or for the end of patience."""
        with self._progress.part(str(worker_id)) as tell:
            described = asyncio.ensure_future(self._actors.describe(worker_id))
            deadline = self._clock() + self._settings.start_timeout_s
            try:
                while True:
                    done, _ = await asyncio.wait([described], timeout=self._look_period_s * 2)
                    if done:
                        break
                    life = await self._actors.life(worker_id)
                    if life.restarts > 0 or life.dead:
                        words = await self._actors.last_words(worker_id)
                        raise worker_failed(worker_id, words or "its process ended; run with --verbose to see its log")
                    if self._clock() > deadline:
                        raise worker_failed(worker_id, self._lateness(waits_for_room=life.waits_for_room))
                record = await self._registration(worker_id, described)
            finally:
                described.cancel()
            tell(f"{record['address']} pid {record['pid']}")
            return record

    async def _registration(
        self, worker_id: WorkerId, described: "asyncio.Future[Mapping[str, Any]]"
    ) -> Mapping[str, Any]:
        try:
            return described.result()
        except Exception as error:  # whatever the actor raised, Ray wraps: the process's last words say it best
            words = await self._actors.last_words(worker_id)
            raise worker_failed(worker_id, words or _last_line(error)) from error

    def _lateness(self, *, waits_for_room: bool) -> str:
        if waits_for_room:
            return (
                "no node of the Ray cluster has room for it; start its nodes with "
                '--resources=\'{"baton_prefill": N, "baton_decode": N}\' and enough CPUs and GPUs, or ask for fewer'
            )
        return (
            f"not ready after cluster.start_timeout_s = {self._settings.start_timeout_s:g} s; raise it or see --verbose"
        )

    async def _wait_until_ready(self, names: Sequence[WorkerId]) -> None:
        deadline = self._clock() + self._settings.start_timeout_s
        while True:
            ready = await self._ready()
            missing = [name for name in names if name not in ready]
            if not missing:
                return
            if self._clock() > deadline:
                why = "it serves, but the router cannot reach it; see the key host of [prefill] and [decode]"
                raise worker_failed(missing[0], why)
            await asyncio.sleep(self._look_period_s)

    async def _ready(self) -> Collection[WorkerId]:
        """Return the workers that the router can use now: none while it does not answer."""
        assert self._router is not None, "attach() first"
        try:
            workers = (await self._router.list_workers()).workers
        except BatonError:
            return ()
        return {view.worker_id for view in workers if view.state == "ready"}

    async def _unwell(self) -> Collection[WorkerId]:
        """Return the running workers that serve nobody now, as far as the router can say."""
        assert self._router is not None, "attach() first"
        try:
            workers = (await self._router.list_workers()).workers
        except BatonError:
            return ()
        return self._running.keys() - {view.worker_id for view in workers if view.state == "ready"}

    async def _drain_and_end(self, worker_id: WorkerId) -> None:
        with self._progress.part(f"draining {worker_id}") as tell:
            try:
                idle = await self._drain(worker_id, tell)
                tell("" if idle else "ended before it was idle")
            finally:
                await self._end([worker_id])

    async def _drain(self, worker_id: WorkerId, tell: Callable[[str], None]) -> bool:
        """Wait until nobody needs the worker. False when it went first, is unknown, or patience ended."""
        assert self._router is not None, "attach() first"
        deadline = self._clock() + self._settings.drain_timeout_s
        calm = 0
        try:
            known = await self._router.drain(worker_id)
        except BatonError as error:
            tell(str(error))
            known = True  # the router may have taken note, and only the worker may not have heard: look at it
        while known and calm < _CALM_LOOKS and self._clock() < deadline:
            await asyncio.sleep(self._look_period_s)
            try:
                workers = (await self._router.list_workers()).workers
            except BatonError as error:
                tell(str(error))
                continue
            view = next((view for view in workers if view.worker_id == worker_id), None)
            if view is None or view.state == "lost":
                break
            busy = _busy(view)
            calm = calm + 1 if view.state == "draining" and busy == 0 else 0
            tell(f"{busy} requests and blocks still there")
        return calm >= _CALM_LOOKS

    async def _give_up(self, worker_id: WorkerId) -> None:
        try:
            words = await self._actors.last_words(worker_id)
        except Exception:  # noqa: BLE001 - as above; the worker goes, whether or not its log can be read
            words = ""
        self._progress.note(
            f"{worker_id} died more than {self._settings.restart_budget} times in "
            f"{self._settings.restart_window_s:g} s and is given up ({words or 'no last words'}); "
            "mend the cause, then `baton scale` brings a new one"
        )
        await self._end([worker_id])

    async def _end(self, names: Sequence[WorkerId]) -> None:
        for name in names:
            self._running.pop(name, None)
            self._budgets.pop(name, None)
            self._restarts_seen.pop(name, None)
            self._unseen.discard(name)
        await _all(self._actors.end(name) for name in names)

    def _count(self, role: Role) -> int:
        return sum(1 for kind in self._running.values() if kind is role)


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Run the works side by side to the end of each; then raise what the first failed one raised."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _busy(view: WorkerView) -> int:
    """Count what still needs the worker: requests waiting or running, and blocks held for anybody."""
    return view.load.waiting_requests + view.load.running_requests + view.load.held_blocks


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
