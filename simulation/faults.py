"""Lets the faults of a scenario happen at their times, and ends them."""

from collections.abc import Callable
from typing import Any

from simulation.cluster import Cluster
from simulation.network import JITTER_S
from simulation.scenario import HARMLESS, Fault, FaultKind

FELT_S = 2.0
"""How long after its end a fault may still be noticed: a restart, a silence."""


class FaultPlan:
    """Begins and ends the faults of one run."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def schedule(self) -> None:
        """Set a timer for each fault."""
        loop = self._cluster.loop
        for fault in self._cluster.scenario.faults:
            loop.on_host(loop.world, fault.at_s, self._begin, fault)

    def heal(self) -> None:
        """End whatever still goes wrong."""
        cluster = self._cluster
        cluster.network.heal_all()
        cluster.network.jitter_s = JITTER_S
        cluster.block_faults.clear()
        cluster.directory.away, cluster.directory.losses = False, 0.0
        for life in cluster.workers.values():
            life.slowness = 1.0
            life.engine.failures = 0
            cluster.loop.resume(life.host)
        for router in cluster.routers.values():
            cluster.loop.resume(router.host)
        cluster.history.note(cluster.loop.now, "healed")

    def _begin(self, fault: Fault) -> None:
        cluster = self._cluster
        cluster.history.note(
            cluster.loop.now, "FAULT", fault.kind.value, fault.target, fault.peer, fault.variant, fault.value
        )
        if fault.kind not in HARMLESS:
            harm = int(fault.value) if fault.kind is FaultKind.STEP else 1
            cluster.harm += harm
            cluster.loop.on_host(cluster.loop.world, fault.for_s + FELT_S, self._over, harm)
        match fault.kind:
            case FaultKind.PARTITION | FaultKind.RESET | FaultKind.SLOW_LINK | FaultKind.REORDER:
                self._disturb_network(fault)
            case FaultKind.BLOCKS:
                cluster.block_faults.set_rate(fault.variant, fault.value)
                self._later(fault, cluster.block_faults.set_rate, fault.variant, 0.0)
            case FaultKind.DIRECTORY:
                self._disturb_directory(fault)
            case FaultKind.ROUTER_CRASH:
                cluster.crash_router(fault.target)
            case FaultKind.PAUSE:
                self._pause(fault)
            case _:
                self._disturb_worker(fault)

    def _over(self, harm: int) -> None:
        self._cluster.harm_over += harm

    def _disturb_network(self, fault: Fault) -> None:
        network = self._cluster.network
        match fault.kind:
            case FaultKind.PARTITION:
                network.cut(fault.target, fault.peer, both_ways=fault.variant != "one-way")
                self._later(fault, network.heal, fault.target, fault.peer)
            case FaultKind.RESET:
                network.break_between(fault.target, fault.peer, "connection reset")
            case FaultKind.SLOW_LINK:
                network.slow(fault.target, fault.peer, fault.value)
                self._later(fault, network.slow, fault.target, fault.peer, 0.0)
            case _:
                network.jitter_s = fault.value

    def _disturb_worker(self, fault: Fault) -> None:
        cluster, life = self._cluster, self._cluster.workers.get(fault.target)
        if life is None:
            return
        match fault.kind:
            case FaultKind.CRASH:
                silently = fault.variant == "silent"
                cluster.crash_worker(fault.target, silently=silently, same_address=bool(fault.value))
            case FaultKind.STEP:
                life.engine.failures = int(fault.value)
            case FaultKind.SLOW_STEPS:
                life.slowness = fault.value
            case FaultKind.DRAIN:
                life.scheduler.draining = True
                self._later(fault, cluster.retire_worker, fault.target)
            case _:  # a drift is there from the start
                pass

    def _later(self, fault: Fault, callback: Callable[..., object], *args: Any) -> None:
        """End a fault when its time is over."""
        loop = self._cluster.loop
        loop.on_host(loop.world, fault.for_s, callback, *args)

    def _pause(self, fault: Fault) -> None:
        host = self._cluster.host_named(fault.target)
        if host is not None:
            self._cluster.loop.pause(host)
            self._later(fault, self._cluster.loop.resume, host)

    def _disturb_directory(self, fault: Fault) -> None:
        directory = self._cluster.directory
        match fault.variant:
            case "away":
                directory.away = True
                self._later(fault, setattr, directory, "away", False)  # noqa: FBT003  # setattr's value
            case "wiped":
                directory.wipe()
            case "restored":
                self._later(fault, directory.memory.go_back_to, directory.memory.saved())
            case _:
                directory.losses = fault.value
                self._later(fault, setattr, directory, "losses", 0.0)
