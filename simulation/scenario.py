"""What one seed does: the cluster, the requests, the faults.

All of it is drawn before anything runs, so that parts can be left out.
"""

import random
from dataclasses import dataclass, replace
from enum import Enum

from cluster_core.identity import Role
from simulation.hash_engine import layout


class FaultKind(Enum):
    """What can go wrong. A run enables a random few of them."""

    CRASH = "crash"
    """A worker dies; another life follows, perhaps at the same address."""
    ROUTER_CRASH = "router-crash"
    PAUSE = "pause"
    """A machine stands still, as after SIGSTOP."""
    PARTITION = "partition"
    """Two machines do not reach each other, in one direction or both."""
    RESET = "reset"
    """The connections between two machines break."""
    SLOW_LINK = "slow-link"
    REORDER = "reorder"
    """Messages take very different times."""
    BLOCKS = "blocks"
    """Blocks are lost, late, torn, doubled, flipped, cut short or misplaced on their way."""
    STEP = "step"
    """An engine's step raises, once or twice in a row."""
    SLOW_STEPS = "slow-steps"
    DIRECTORY = "directory"
    """Its server is away, starts again empty or from an older snapshot of its data, or its answers are lost."""
    DRIFT = "drift"
    """Clocks run up to a tenth too fast or too slow, and start anywhere."""
    DRAIN = "drain"
    """A worker is told to take no more requests, and then started again."""


HARMLESS = frozenset(
    {FaultKind.SLOW_LINK, FaultKind.REORDER, FaultKind.SLOW_STEPS, FaultKind.DIRECTORY, FaultKind.DRIFT}
)
"""Faults that no request may fail of."""
LIKELY = {FaultKind.BLOCKS: 0.5, FaultKind.ROUTER_CRASH: 0.1, FaultKind.DRAIN: 0.15}
"""How often a kind of fault is enabled, where that is not 0.3."""
TWO_ROUTERS = 0.15
"""How often there are two."""
BLOCK_FAULTS = ("lost", "late", "torn", "doubled", "flipped", "short", "misplaced")
LAST_REQUEST_BLOCKS = 8
"""What the longest prompt takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, from ``at_s`` on, for ``for_s`` seconds."""

    kind: FaultKind
    at_s: float
    for_s: float
    target: str
    peer: str = ""
    variant: str = ""
    value: float = 0.0

    def describe(self) -> str:
        """Return one line."""
        where = " ".join(each for each in (self.target, self.peer, self.variant) if each)
        return f"{self.kind.value} {where} at {self.at_s:g} s for {self.for_s:g} s ({self.value:g})"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """A worker."""

    name: str
    role: Role
    total_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPlan:
    """A request and how its client behaves."""

    name: str
    at_s: float
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    choices: int
    salt: str
    stop_token_ids: tuple[int, ...]
    deadline_s: float | None
    leaves_after_s: float | None
    """The client goes away after so many seconds."""
    cancels_by_id: bool
    """It does so by `Cancel`, and reads on."""
    pause_s: float
    """It waits so long before it reads each chunk."""
    router: str = "router"
    """Which router it asks."""
    stops_after: int | None = None
    """A stop string ends each answer at the token that is the first answer's last of so many."""
    recover: bool = True
    """Whether it goes on elsewhere when a worker fails it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All of a run but its small random numbers, which come of ``seed``."""

    seed: int
    workers: tuple[WorkerPlan, ...]
    routers: tuple[str, ...]
    """Their names. Two know nothing of each other, and share the workers."""
    requests: tuple[RequestPlan, ...]
    faults: tuple[Fault, ...]
    placement: str
    window_tokens: int
    blocks_in_flight: int
    chunk_tokens: int
    leg_buffer_events: int
    stream_tokens: int

    @property
    def kinds(self) -> tuple[FaultKind, ...]:
        """The kinds of fault that occur, each once."""
        return tuple(dict.fromkeys(fault.kind for fault in self.faults))

    @property
    def heals_at_s(self) -> float:
        """From when on nothing goes wrong any more."""
        ends = [fault.at_s + fault.for_s for fault in self.faults]
        return max([0.3, *(request.at_s for request in self.requests), *ends])


def draw_scenario(seed: int) -> Scenario:
    """Return the scenario of a seed."""
    draw = random.Random(f"scenario {seed}")  # noqa: S311  # a simulation, no secret
    window_tokens = 8 if draw.random() < 0.12 else 0
    routers = ("router", "router-1") if draw.random() < TWO_ROUTERS else ("router",)
    requests = _draw_requests(draw, routers)
    workers = _draw_workers(draw, Role.PREFILL, draw.choice((1, 1, 2)), LAST_REQUEST_BLOCKS)
    workers += _draw_workers(
        draw, Role.DECODE, draw.choice((1, 2, 2, 3)), max(LAST_REQUEST_BLOCKS, *map(_blocks_of, requests))
    )
    names = [[worker.name for worker in workers], list(routers)]
    kinds = [kind for kind in FaultKind if draw.random() < LIKELY.get(kind, 0.3)] if draw.random() < 0.9 else []
    faults = [_draw_fault(draw, kind, *names) for kind in kinds for _ in range(draw.randint(1, 2))]
    return Scenario(
        seed=seed,
        workers=tuple(workers),
        routers=routers,
        requests=_with_wishes(seed, requests),
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        placement=draw.choice(("split", "split", "split", "split", "auto", "auto", "local")),
        window_tokens=window_tokens,
        blocks_in_flight=draw.choice((1, 2, 8, 64)),
        chunk_tokens=draw.choice((4, 6, 16)),
        leg_buffer_events=draw.choice((2, 64)),
        stream_tokens=draw.choice((2, 8, 1024)),
    )


def _draw_workers(draw: random.Random, role: Role, count: int, fewest_blocks: int) -> list[WorkerPlan]:
    """Return workers whose pools hold the largest request, and little more."""
    return [
        WorkerPlan(name=f"{role.value}-{number}", role=role, total_blocks=fewest_blocks + draw.choice((0, 0, 2, 6, 16)))
        for number in range(count)
    ]


def _blocks_of(request: RequestPlan) -> int:
    """Return how many blocks all answers to a request take."""
    return layout(0).blocks_for_answers(len(request.prompt), request.max_tokens, request.choices)


def _draw_requests(draw: random.Random, routers: tuple[str, ...]) -> tuple[RequestPlan, ...]:
    prefixes = [tuple(draw.randrange(10, 61) for _ in range(draw.randint(4, 20))) for _ in range(2)]
    requests = []
    for number in range(draw.randint(1, 5)):
        prompt = draw.choice(prefixes) if draw.random() < 0.6 else ()
        prompt += tuple(draw.randrange(10, 61) for _ in range(draw.randint(1, 9)))
        behaviour = draw.random()
        requests.append(
            RequestPlan(
                name=f"r{number}",
                at_s=round(draw.uniform(0.0, 0.2) if draw.random() < 0.7 else draw.uniform(0.2, 0.5), 4),
                prompt=prompt,
                max_tokens=draw.randint(1, 10),
                temperature=draw.choice((0.0, 1.0)),
                seed=draw.randrange(1000),
                choices=draw.choice((1, 1, 1, 1, 1, 1, 1, 2, 3)),
                salt=draw.choice(("", "", "", "other")),
                stop_token_ids=tuple(draw.sample(range(61), 2)) if draw.random() < 0.3 else (),
                deadline_s=round(draw.uniform(0.02, 2.0), 3) if behaviour < 0.12 else None,
                leaves_after_s=round(draw.uniform(0.0, 0.3), 4) if 0.12 <= behaviour < 0.24 else None,
                cancels_by_id=draw.random() < 0.5,
                pause_s=draw.choice((0.0, 0.0, 0.0, 0.05)),
                router=draw.choice(routers),
            )
        )
    return tuple(requests)


def _with_wishes(seed: int, requests: tuple[RequestPlan, ...]) -> tuple[RequestPlan, ...]:
    """Let some requests have a stop string or want no recovery: of a draw of its own, so that all else stays."""
    draw = random.Random(f"wishes {seed}")  # noqa: S311  # a simulation, no secret
    return tuple(
        replace(
            request,
            stops_after=draw.randint(1, request.max_tokens)
            if draw.random() < (0.5 if request.choices > 1 else 0.1)
            else None,
            recover=draw.random() >= 0.1,
        )
        for request in requests
    )


def _draw_fault(draw: random.Random, kind: FaultKind, workers: list[str], routers: list[str]) -> Fault:
    at_s, for_s = round(draw.uniform(0.0, 0.3), 4), round(draw.uniform(0.05, 0.5), 4)
    target = draw.choice(routers if kind is FaultKind.ROUTER_CRASH else workers)
    fault = Fault(kind=kind, at_s=at_s, for_s=for_s, target=target)
    everybody = [*workers, *routers]
    match kind:
        case FaultKind.CRASH:
            return replace(fault, variant=draw.choice(("", "silent")), value=float(draw.random() < 0.5))
        case FaultKind.PAUSE:
            return replace(fault, target=draw.choice(everybody), for_s=draw.choice((0.1, 0.4, 1.0, 1.8)))
        case FaultKind.PARTITION:
            target, peer = draw.sample([*everybody, "directory"], 2)
            variant, for_s = draw.choice(("", "one-way")), draw.choice((0.05, 0.3, 1.0, 1.5))
            return replace(fault, target=target, peer=peer, variant=variant, for_s=for_s)
        case FaultKind.RESET | FaultKind.SLOW_LINK:
            target, peer = draw.sample(everybody, 2)
            return replace(fault, target=target, peer=peer, value=draw.choice((0.01, 0.05, 0.2)))
        case FaultKind.DRIFT:
            target, value = draw.choice([*everybody, "clients"]), round(draw.uniform(0.9, 1.1), 3)
            return replace(fault, at_s=0.0, for_s=0.0, target=target, value=value)
        case _:
            return _draw_plain_fault(draw, fault)


def _draw_plain_fault(draw: random.Random, fault: Fault) -> Fault:
    """Complete a fault of one target, or of none."""
    match fault.kind:
        case FaultKind.REORDER:
            return replace(fault, target="", value=draw.choice((0.005, 0.03)))
        case FaultKind.BLOCKS:
            variant, value = draw.choice(BLOCK_FAULTS), draw.choice((0.1, 0.5, 1.0))
            return replace(fault, at_s=round(fault.at_s / 4, 4), target="", variant=variant, value=value)
        case FaultKind.STEP | FaultKind.SLOW_STEPS:
            return replace(fault, value=draw.choice((1.0, 2.0) if fault.kind is FaultKind.STEP else (3.0, 10.0)))
        case FaultKind.DIRECTORY:
            return replace(fault, target="", variant=draw.choice(("away", "wiped", "losses", "restored")), value=0.5)
        case FaultKind.DRAIN:
            return replace(fault, for_s=1.0)
        case _:
            return fault
