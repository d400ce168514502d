"""The simulated cluster: hosts with their lives, and what can be done to them."""

import random
from collections.abc import Callable
from dataclasses import replace

from block_directory.settings import DirectorySettings
from cluster_core.identity import Incarnation, RequestId
from decode_worker.settings import DecodeSettings
from kv_transfer.settings import TransferSettings
from prefill_worker.settings import PrefillSettings
from router.settings import RouterSettings
from simulation.block_moves import BlockFaults
from simulation.clients import Client, Violation
from simulation.directory_server import DirectoryServer
from simulation.hash_engine import layout
from simulation.history import History
from simulation.network import JITTER_S, Network
from simulation.router_life import RouterLife
from simulation.scenario import FaultKind, RequestPlan, Scenario, WorkerPlan
from simulation.virtual_loop import CURRENT, Host, VirtualLoop
from simulation.worker_life import Surroundings, WorkerLife

RESTART_S = 0.3
"""How long it takes until a worker that ended runs again."""

DIRECTORY = DirectorySettings(
    lease_s=1.5,
    call_timeout_s=0.1,
    tail_wait_s=0.5,
    retry_min_s=0.05,
    retry_max_s=0.2,
    resync_spread_s=0.1,
    snapshot_pause_s=0.1,
)
TRANSFER = TransferSettings(
    transport="loopback",
    lease_s=0.5,
    grace_s=0.15,
    open_timeout_s=0.6,
    pull_timeout_s=0.5,
    prefill_timeout_s=2.5,
    settle_timeout_s=0.1,
)


class Cluster:
    """Everything of one run."""

    def __init__(self, scenario: Scenario, history: History) -> None:
        self.scenario = scenario
        self.history = history
        self.violations: list[str] = []
        self._over = False
        self.loop = VirtualLoop(self.report)
        self._token = CURRENT.set(self.loop.world)
        self.network = Network(self.loop, self.randomness("network"), history, JITTER_S)
        self.directory = DirectoryServer(self.network, DIRECTORY, self.randomness("directory"))
        self.block_faults = BlockFaults(self.randomness("blocks"))
        self.fetched = [0]
        """How many blocks workers have fetched from one another's caches."""
        self.clients: list[Client] = []
        self.workers: dict[str, WorkerLife] = {}
        self.retired: list[WorkerLife] = []
        """Lives that have ended: kept, so that nothing of them is collected in the middle of a run."""
        self.routers: dict[str, RouterLife] = {}
        self.harm = 0
        """Faults so far that may have cost a request an attempt."""
        self.harm_over = 0
        """Those of them that nobody feels any more."""
        self._plans: dict[str, WorkerPlan] = {plan.name: plan for plan in scenario.workers}
        self._speeds = {fault.target: fault.value for fault in scenario.faults if fault.kind is FaultKind.DRIFT}
        self._lives = 0
        self._hosts: list[Host] = []
        self._client_host = self._host("clients")
        self._tenants: dict[RequestId, str] = {}
        self._around = Surroundings(
            network=self.network,
            directory=self.directory,
            block_faults=self.block_faults,
            layout=layout(scenario.window_tokens),
            prefill=PrefillSettings(token_budget=16, chunk_tokens=scenario.chunk_tokens, max_running=4, passing_s=0.2),
            decode=DecodeSettings(
                token_budget=24,
                chunk_tokens=scenario.chunk_tokens,
                max_running=8,
                passing_s=0.2,
                import_patience_s=0.3,
                stream_tokens=scenario.stream_tokens,
                slow_reader_s=3.0,
            ),
            transfer=replace(TRANSFER, blocks_in_flight=scenario.blocks_in_flight),
            directory_settings=DIRECTORY,
            tenants=self._tenants,
            randomness=self.randomness("workers"),
            fetched=self.fetched,
        )
        self._router_settings = RouterSettings(
            watch_period_s=0.4,
            watch_silence_periods=3,
            worker_wait_s=4.0,
            forget_lost_s=2.0,
            default_deadline_s=0,
            leg_buffer_events=scenario.leg_buffer_events,
            placement=scenario.placement,
        )

    def randomness(self, name: str) -> random.Random:
        """Return a source of random numbers that depends on the seed and the name alone."""
        return random.Random(f"{self.scenario.seed} {name}")  # noqa: S311  # a simulation, no secret

    def report(self, violation: str) -> None:
        """Note that something happened that must not, unless the run is over."""
        if self._over:
            return
        self.violations.append(violation)
        self.history.note(self.loop.now, "VIOLATION", violation)
        self.loop.stop()

    def start(self) -> None:
        """Start the routers, the workers and the clients' clocks."""
        for name in self.scenario.routers:
            self.start_router(name)
        for name in self._plans:
            self.start_worker(name)
        for plan in self.scenario.requests:
            self.add_client(plan)

    def add_client(self, plan: RequestPlan) -> Client:
        """Let a client send its request at its time."""
        client = Client(plan, self.network, self._client_host, self.scenario.window_tokens, self._harm_so_far)
        self._tenants[RequestId(plan.name)] = plan.salt
        self.clients.append(client)
        self.loop.on_host(self._client_host, max(0.0, plan.at_s - self.loop.now), self._begin, client)
        return client

    def start_worker(self, name: str, address: str = "") -> None:
        """Begin a new life of a worker, unless one runs."""
        if name in self.workers:
            return
        self._lives += 1
        host = self._host(name)
        address = address or f"{name}:{self._lives}"
        life = WorkerLife(self._plans[name], self._around, host, Incarnation(self._lives), address, self.worker_broke)
        self.workers[name] = life
        self.history.note(self.loop.now, "start", name, f"life {self._lives}")
        self.loop.on_host(host, 0.0, life.start)

    def crash_worker(self, name: str, *, silently: bool, same_address: bool = False) -> None:
        """Let a worker die; `start_worker` is called after `RESTART_S`."""
        life = self.workers.pop(name, None)
        if life is None:
            return
        self.retired.append(life)
        self._die(life.host, silently=silently)
        self.loop.on_host(
            self.loop.world, RESTART_S, self.start_worker, name, life.address if same_address and not silently else ""
        )

    def worker_broke(self, life: WorkerLife) -> None:
        """End a worker that says it cannot go on, as its process would."""
        self.history.note(self.loop.now, "broken", life.plan.name)
        self.loop.on_host(self.loop.world, 0.0, self._crash_life, life)

    def retire_worker(self, name: str) -> None:
        """End a worker in order, and start another life of it afterwards."""
        life = self.workers.pop(name, None)
        if life is not None:
            self.retired.append(life)
            self.loop.on_host(life.host, 0.0, self._begin_closing, life)

    def crash_router(self, name: str) -> None:
        """Let a router die; its next life starts after `RESTART_S`."""
        self._die(self.routers[name].host, silently=False)
        self.loop.on_host(self.loop.world, RESTART_S, self.start_router, name)

    def start_router(self, name: str) -> None:
        """Begin a new life of a router."""
        host = self._host(name)
        self._lives += 1
        randomness = self.randomness(f"router {self._lives}")
        life = self.routers[name] = RouterLife(self.network, host, self._router_settings, self._around.layout)
        self.loop.on_host(host, 0.0, life.start, self.directory, DIRECTORY, randomness)

    def host_named(self, name: str) -> Host | None:
        """Return the host on which something runs now."""
        if name in self.routers:
            return self.routers[name].host
        life = self.workers.get(name)
        return None if life is None else life.host

    def run(self, until_s: float, done: Callable[[], bool] | None = None) -> None:
        """Let time pass, until something is reported at the latest."""
        if not self.violations:
            self.loop.run(until_s, done)

    def close(self) -> None:
        """Take everything down. Nothing that is said meanwhile counts."""
        self._over = self.history.closed = True
        self.loop.demolish(self._hosts)
        self.loop.close()
        CURRENT.reset(self._token)

    def _harm_so_far(self) -> tuple[int, int]:
        return self.harm + self.block_faults.injected, self.harm_over

    def _host(self, name: str) -> Host:
        speed = self._speeds.get(name, 1.0)
        host = Host(name, speed, offset_s=1000.0 * (speed - 1.0) + 100.0 if speed != 1.0 else 0.0)
        self._hosts.append(host)
        return host

    def _die(self, host: Host, *, silently: bool) -> None:
        if host.alive:
            self.history.note(self.loop.now, "crash", host.name, "silent" if silently else "")
            self.loop.kill(host)
            self.network.host_died(host, silently=silently)

    def _crash_life(self, life: WorkerLife) -> None:
        if self.workers.get(life.plan.name) is life:
            self.crash_worker(life.plan.name, silently=False)

    def _begin_closing(self, life: WorkerLife) -> None:
        self.loop.create_task(self._close_life(life), name="close")

    async def _close_life(self, life: WorkerLife) -> None:
        await life.close()
        self.history.note(self.loop.now, "closed", life.plan.name)
        self.loop.on_host(self.loop.world, 0.0, self._die_and_restart, life)

    def _die_and_restart(self, life: WorkerLife) -> None:
        self._die(life.host, silently=False)
        self.loop.on_host(self.loop.world, RESTART_S, self.start_worker, life.plan.name)

    def _begin(self, client: Client) -> None:
        self.loop.create_task(self._run_client(client), name="client")

    async def _run_client(self, client: Client) -> None:
        try:
            await client.run()
        except Violation as violation:
            self.report(str(violation))
