"""What each part of serving a request takes on a worker, in seconds. Pure: nothing here waits, counts or remembers.

A worker reports coefficients that it learned online (seconds a prompt token, seconds a decode step, bytes a second of
its imports). One that has not measured yet is assumed to be like the others: first those of its own role, then any,
then the configured prior.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster_core.identity import Role, WorkerId
from cluster_core.layout import first_block_in_window
from cluster_core.workers import WorkerLoad, WorkerRecord
from router.settings import RouterSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """What this router gave a worker since the worker's last report, less what ended since."""

    prefill_tokens: int = 0
    streams: int = 0
    blocks: int = 0


NOTHING_ASSIGNED = Assigned()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A worker as the balancer sees it: who it is, what it reported, and what it was given meanwhile."""

    record: WorkerRecord
    load: WorkerLoad
    assigned: Assigned = NOTHING_ASSIGNED
    links: Mapping[WorkerId, tuple[float, float]] = field(default_factory=dict)
    """What it knows of the way from other workers to itself, by their ids; see `link_speed`."""
    rounding_links: Mapping[WorkerId, tuple[float, float]] = field(default_factory=dict)
    """The same of hand-overs over those links on which blocks are rounded; see `handover_speed`."""

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that the worker will compute before a new request's."""
        return max(0, self.load.queued_prefill_tokens + self.assigned.prefill_tokens)

    @property
    def streams(self) -> int:
        """Requests that the worker is writing for."""
        return max(0, self.load.running_requests + self.assigned.streams)

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds, cached ones among them."""
        total = self.load.total_blocks or self.record.total_blocks
        return total - self.load.held_blocks - self.assigned.blocks


Lender = tuple[WorkerView, int]
"""A worker, and how many leading blocks of a prompt it has told that it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """A worker's measured speeds, or the best guess for them."""

    prefill_s_per_token: float
    decode_step_s: float
    transfer_bytes_per_s: float
    transfer_fixed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSize:
    """What the cost of a request depends on."""

    prompt_tokens: int
    max_tokens: int
    cached_blocks: Mapping[WorkerId, int]
    """For each worker that holds any: the number of leading blocks of the prompt that it holds."""
    choices: int = 1
    """How many answers are written to the one prompt."""
    lenders: Sequence[Lender] = ()
    """Who may lend how many leading blocks of the prompt to the worker that reads it (see `router.loans`)."""


def coefficients_of(views: Sequence[WorkerView], settings: RouterSettings) -> dict[WorkerId, Coefficients]:
    """Return each worker's coefficients by its id."""
    prefill = _learned(views, lambda load: load.prefill_s_per_token, settings.prior_prefill_s_per_token)
    step = _learned(views, lambda load: load.decode_step_s, settings.prior_decode_step_s)
    speed = _learned(views, lambda load: load.transfer_bytes_per_s, settings.prior_transfer_bytes_per_s)
    fixed = _learned(views, lambda load: load.transfer_fixed_s, settings.prior_transfer_fixed_s)
    return {
        view.record.worker_id: Coefficients(
            prefill_s_per_token=prefill(view),
            decode_step_s=step(view),
            transfer_bytes_per_s=speed(view),
            transfer_fixed_s=fixed(view),
        )
        for view in views
    }


def _learned(
    views: Sequence[WorkerView], read: Callable[[WorkerLoad], float], prior: float
) -> Callable[[WorkerView], float]:
    """Return how to get a view's coefficient: its own, else its role's mean, else anyone's, else the prior."""
    known = [(view.record.role, value) for view in views if (value := read(view.load)) > 0]
    guesses: dict[Role, float] = {}

    def guess(role: Role) -> float:
        if role not in guesses:
            values = [value for its_role, value in known if its_role is role] or [value for _, value in known]
            guesses[role] = sum(values) / len(values) if values else prior
        return guesses[role]

    return lambda view: read(view.load) or (guess(view.record.role) if known else prior)


def cached_tokens(size: RequestSize, view: WorkerView) -> int:
    """Prompt tokens that the worker need not compute. The last one is always computed: it yields the first token."""
    blocks = size.cached_blocks.get(view.record.worker_id, 0)
    return min(blocks * view.record.layout.block_size_tokens, size.prompt_tokens - 1)


def prefill_queue_s(view: WorkerView, speed: Coefficients) -> float:
    """Seconds until the worker has computed the prompt tokens that came before."""
    return view.queued_tokens * speed.prefill_s_per_token


def decode_queue_s(size: RequestSize, view: WorkerView, speed: Coefficients, settings: RouterSettings) -> float:
    """Seconds until a decode worker has room: for those who wait already, and for the blocks it lacks.

    Running streams end at a rate of ``streams / (answer_tokens · step)`` a second and give back the blocks they hold.
    """
    waiting = view.load.waiting_requests
    streams = max(1, view.streams)
    answer_s = settings.prior_answer_tokens * speed.decode_step_s
    needed = view.record.layout.blocks_for_answers(size.prompt_tokens, size.max_tokens, size.choices)
    lacking = max(0, needed - view.free_blocks)
    held = max(1, view.load.held_blocks)
    room_s = max(waiting / streams, lacking / held) * answer_s
    return view.queued_tokens * speed.prefill_s_per_token + room_s


def link_speed(importer: WorkerView, exporter: WorkerId, otherwise: Coefficients) -> tuple[float, float]:
    """Return what moving blocks from ``exporter`` to ``importer`` takes: (seconds beside the bytes, bytes a second).

    As the importer knows this very link, by calibration and by its imports over it; a link that it does not know yet is
    assumed to be like the worker's others, whose mean is in ``otherwise`` (the importer's coefficients).
    """
    return importer.links.get(exporter) or (otherwise.transfer_fixed_s, otherwise.transfer_bytes_per_s)


def handover_speed(importer: WorkerView, exporter: WorkerId, otherwise: Coefficients) -> tuple[float, float]:
    """Return as `link_speed` what a hand-over takes, for bytes of blocks: fewer may travel, but rounding takes time.

    A fetch brings exact blocks always: its speed is the link's own.
    """
    return importer.rounding_links.get(exporter) or link_speed(importer, exporter, otherwise)


def missing_bytes(size: RequestSize, view: WorkerView) -> int:
    """Bytes of the prompt's blocks that a decode worker lacks and will read."""
    layout = view.record.layout
    unread = first_block_in_window(size.prompt_tokens, layout.window_tokens, layout.block_size_tokens)
    spared_tokens = max(cached_tokens(size, view), unread * layout.block_size_tokens)
    return (size.prompt_tokens - spared_tokens) * layout.token_bytes


def stream_harm_s(view: WorkerView, speed: Coefficients, settings: RouterSettings) -> float:
    """Seconds that one more stream takes from the running ones while it is written.

    A step reads the weights once for all streams; ``stream_share`` is the part of it that one more stream adds, to
    each running stream, for as many steps as an answer has tokens.
    """
    return view.streams * settings.prior_answer_tokens * speed.decode_step_s * settings.stream_share


def prefill_harm_s(view: WorkerView, own_prefill_s: float, settings: RouterSettings) -> float:
    """Seconds that a prefill on a decode worker takes from its streams, those expected meanwhile among them."""
    return own_prefill_s * (view.streams + settings.expected_streams)
