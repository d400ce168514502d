"""What the client hands to its user: plain values, no protobuf."""

from dataclasses import dataclass

from cluster_core.handoff import FetchReport, HandoffReport
from cluster_core.identity import Incarnation, RequestId, Role, WorkerId
from cluster_core.logprobs import TokenLogprobs
from cluster_core.workers import WorkerLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Durations of one request in seconds, as the router measured them (see ``generation.proto``)."""

    queue_s: float
    prefill_s: float
    ttft_s: float
    handover_s: float
    tpot_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """How an answer ended."""

    request_id: RequestId
    finish_reason: str
    """``stop`` or ``length``."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV was found in a cache."""
    matched_token_id: int | None
    matched_stop: str | None
    seed: int
    timings: Timings
    index: int = 0
    """Which of the answers, where several were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of an answer. ``completion`` is None but for the last, which has no tokens and perhaps a rest of text."""

    token_ids: tuple[int, ...]
    text: str
    token_index: int
    """The place of the first of ``token_ids`` in the answer."""
    completion: Completion | None = None
    index: int = 0
    """Which of the answers, where several were asked for."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of ``token_ids``, where they were asked for."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    """Of the prompt's next tokens, where they were asked for: before the first token. The prompt's first has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    completion: Completion
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    """Of every token of the prompt; None for its first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker as the router sees it."""

    worker_id: WorkerId
    incarnation: Incarnation
    role: Role
    address: str
    transport: str
    state: str
    """``ready``, ``draining`` or ``lost``."""
    load: WorkerLoad
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """The cluster as the router sees it."""

    workers: tuple[WorkerView, ...]
    mode: str
    """``SERVING`` or ``DEGRADED`` (the directory is out of reach)."""
    model: str
    live_requests: int
    queued_requests: int
    directory_url: str
    late_tokens: int = 0
    """Tokens that came from workers whose attempt had failed or had been given to others, since the router's start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A placement that was considered, with its predicted time and the summands of it."""

    prefill_worker: WorkerId | None
    """None: a local placement."""
    decode_worker: WorkerId
    total_s: float
    terms: tuple[tuple[str, float], ...]
    prefill_cached_tokens: int
    decode_cached_tokens: int
    fetch_worker: WorkerId | None = None
    """Whose cache lends the reader leading blocks of the prompt, up to ``fetch_blocks``; None: nothing is fetched."""
    fetch_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpan:
    """When a stage ran, in seconds since the request's arrival."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One attempt of a request: where it went, why, and how it ended."""

    attempt: int
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    """The best first."""
    outcome: str
    handoff: HandoffReport | None
    spans: tuple[StageSpan, ...]
    rung: str = ""
    """How it came about: ``first try``, or the way that was taken after a failure."""
    kept_of_failed: int = 0
    """Full blocks that the decode worker kept of a hand-over that failed in it."""
    link: str = ""
    """Where its blocks went from and to, and over what."""
    fetch: FetchReport | None = None
    """What the worker that read the prompt fetched from another one's cache."""
