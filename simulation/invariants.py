"""What must hold in every run: `check_now` at any moment; at rest, no `left_at_rest` and no `misbelieved`."""

from collections.abc import Iterator

from cluster_core.errors import BatonError, DeadlineExceeded, LegFailed, NoWorker, PartUnavailable
from cluster_core.identity import WorkerId
from router.settings import RouterSettings
from simulation.calls import Call
from simulation.clients import Client
from simulation.cluster import Cluster
from simulation.router_life import RouterLife
from simulation.scenario import HARMLESS, FaultKind
from simulation.worker_life import WorkerLife

PERMANENT_TASKS = ("engine loop", "sweeper", "publisher of", "directory follower", "watch ", "serve Watch")


def check_now(cluster: Cluster) -> None:
    """Report what is wrong with a pool: blocks that are lost, counted twice, or held by nobody."""
    for life in cluster.workers.values():
        try:
            life.pool.audit_if_changed()
        except AssertionError as error:
            cluster.report(f"{life.plan.name}: {error}")


def left_at_rest(cluster: Cluster) -> list[str]:
    """Return what a run that should be over has left behind."""
    problems = []
    for client in cluster.clients:
        problem = _end_of(cluster, client)
        if problem:
            problems.append(f"{client.plan.name}: {problem}")
    for life in cluster.workers.values():
        problems += [f"{life.plan.name}: {problem}" for problem in _left_on(life)]
    for router in cluster.routers.values():
        name = router.host.name
        problems += [f"{name}: {problem}" for problem in _left_on_router(cluster, router)]
    for call in cluster.network.carried():
        if isinstance(call, Call) and call.method.path != "Watch":
            ends = " to ".join(host.name for host in call.ends)
            problems.append(f"a call {call.method.path} from {ends} has not ended")
    return problems


def misbelieved(cluster: Cluster) -> list[str]:
    """Return where routers and caches differ."""
    return [f"{each.host.name}: {problem}" for each in cluster.routers.values() for problem in _index(cluster, each)]


def all_ready(cluster: Cluster) -> bool:
    """Say whether the routers know every worker, and that it is ready."""
    return all(_knows_all(cluster, router) for router in cluster.routers.values())


def _knows_all(cluster: Cluster, router: RouterLife) -> bool:
    views = router.core.membership.ready_views()
    known = {(str(view.record.worker_id), view.record.incarnation) for view in views}
    lives = {(name, life.incarnation) for name, life in cluster.workers.items()}
    return known == lives and len(lives) == len(cluster.scenario.workers)


def _end_of(cluster: Cluster, client: Client) -> str | None:
    """Say what is wrong with how a request ended."""
    if not client.over:
        return "it has not ended"
    if client.succeeded or client.left or client.error is None:
        return None
    if isinstance(client.error, DeadlineExceeded) and client.plan.deadline_s is not None:
        return None
    if _allowed(cluster, client, client.error):
        return None
    return f"it failed without need: {type(client.error).__name__}: {client.error}"


def _allowed(cluster: Cluster, client: Client, error: BatonError) -> bool:
    """Say whether faults excuse an error. What is told must be the truth: try again, or nothing answers."""
    kinds = cluster.scenario.kinds
    if isinstance(error, LegFailed) and str(error).endswith("the request asked for no recovery"):
        return not client.plan.recover and client.harm > 0
    if isinstance(error, NoWorker) and "attempts failed" in str(error):
        return client.harm >= RouterSettings().max_attempts
    if isinstance(error, PartUnavailable):
        return FaultKind.ROUTER_CRASH in kinds or FaultKind.PAUSE in kinds
    return isinstance(error, NoWorker) and any(kind not in HARMLESS for kind in kinds)


def _left_on(life: WorkerLife) -> Iterator[str]:
    counts = life.pool.counts()
    if counts.held:
        holds = {str(hold) for index in range(counts.total) for hold in life.pool.holds(index)}
        yield f"{counts.held} blocks are held at rest: {sorted(holds)[:4]}"
    if not life.scheduler.idle:
        yield "its scheduler has work left"
    load = life.load()
    if load.waiting_requests or load.running_requests or load.queued_prefill_tokens:
        yield f"it reports work: {load}"
    if load.orphaned_holds:
        yield f"{load.orphaned_holds} holds were orphaned"
    if life.importer.quarantined:
        yield f"{life.importer.quarantined} blocks are in quarantine"
    for task in life.host.running_tasks():
        if not task.get_name().startswith(PERMANENT_TASKS):
            yield f"a task is left: {task.get_name()}"


def _left_on_router(cluster: Cluster, router: RouterLife) -> Iterator[str]:
    core = router.core
    if len(core.live) or core.admission.live or core.admission.queued:
        yield f"{len(core.live)} live, {core.admission.live} admitted, {core.admission.queued} queued"
    if len(core.ledger):
        yield f"its ledger has {len(core.ledger)} entries"
    for task in router.host.running_tasks():
        if not task.get_name().startswith(PERMANENT_TASKS):
            yield f"a task is left: {task.get_name()}"
    if not _knows_all(cluster, router):
        yield f"of {sorted(cluster.workers)} some are not ready"


def _index(cluster: Cluster, router: RouterLife) -> Iterator[str]:
    """Compare what a router believes of each cache with what is in it."""
    index = router.index
    for life in cluster.workers.values():
        hashes = life.pool.cached_hashes()
        name = WorkerId(life.plan.name)
        if index.held_blocks(name) != len(hashes):
            yield f"{name} holds {len(hashes)} blocks, it knows of {index.held_blocks(name)}"
        missing = [each for each in hashes if index.longest_prefix([each]).get(name) != 1]
        if missing:
            yield f"it lacks {len(missing)} blocks of {name}"
