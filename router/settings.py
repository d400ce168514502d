"""What can be set of the router, section ``[router]``."""

from dataclasses import dataclass

PLACEMENTS = ("auto", "split", "local")

LAST_PORT = 65_535

_AT_LEAST = {
    "port": 0,
    "max_live_requests": 1,
    "max_queued_requests": 0,
    "queue_timeout_s": 0,
    "default_deadline_s": 0,
    "max_attempts": 1,
    "worker_wait_s": 0,
    "watch_silence_periods": 1,
    "forget_lost_s": 0,
    "leg_buffer_events": 1,
    "kept_placements": 0,
    "drain_timeout_s": 0,
    "harm_weight": 0,
    "expected_streams": 0,
    "stream_share": 0,
    "fetch_patience_s": 0,
    "prior_prefill_s_per_token": 0,
    "prior_decode_step_s": 0,
    "prior_transfer_fixed_s": 0,
    "prior_answer_tokens": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """How much the router takes on, how long it waits, and what it assumes before it has measured."""

    host: str = "127.0.0.1"
    port: int = 50051
    """0 lets the system choose; the ready line names the choice."""
    served_model_name: str = ""
    """The name clients use; empty means the model's own."""
    max_live_requests: int = 256
    max_queued_requests: int = 1024
    queue_timeout_s: float = 60.0
    default_deadline_s: float = 600.0
    """For a request whose client set none; 0 means none."""
    max_attempts: int = 3
    """Tries at one request, the first included."""
    worker_wait_s: float = 30.0
    """How long a request waits for a worker when none is there: Ray may be restarting it."""
    watch_period_s: float = 0.5
    watch_silence_periods: int = 10
    """A worker that says nothing for so many periods is lost."""
    forget_lost_s: float = 30.0
    """How long a lost worker whose registration has run out is still listed."""
    leg_buffer_events: int = 64
    """Events read from the workers ahead of a slow client; beyond it their streams are not read."""
    kept_placements: int = 1024
    """Requests whose placement can still be asked for."""
    placement: str = "auto"
    """``auto`` compares; ``split`` hands over wherever a prefill worker lives; ``local`` never hands over."""
    tie_break_seed: int = 0
    drain_timeout_s: float = 10.0
    """How long live requests may go on when the router is told to stop."""
    harm_weight: float = 1.0
    """How a second taken from other requests counts beside a second of this one."""
    expected_streams: float = 1.0
    """Streams assumed to run on a decode worker beside the ones that do, when a prefill there is weighed."""
    stream_share: float = 0.02
    """The part of a decode step that one more stream adds to it."""
    fetch_patience_s: float = 0.5
    """How long a worker may try to fetch a prefix from another one's cache: so long, or as long as computing the same
    is predicted to take, whichever is more."""
    prior_prefill_s_per_token: float = 0.0005
    prior_decode_step_s: float = 0.02
    prior_transfer_bytes_per_s: float = 1e9
    prior_transfer_fixed_s: float = 0.003
    prior_answer_tokens: float = 64.0

    def __post_init__(self) -> None:
        """Refuse values that could not work, naming the key."""
        for key, least in _AT_LEAST.items():
            if not least <= getattr(self, key) < float("inf"):
                message = f"{key}: {getattr(self, key)} is out of range; {least} or more"
                raise ValueError(message)
        for key in ("watch_period_s", "prior_transfer_bytes_per_s"):
            if not 0 < getattr(self, key) < float("inf"):
                message = f"{key}: {getattr(self, key)} must be greater than 0"
                raise ValueError(message)
        if self.port > LAST_PORT:
            message = f"port: {self.port} is out of range; 0 to {LAST_PORT}"
            raise ValueError(message)
        if self.placement not in PLACEMENTS:
            message = f"placement: {self.placement!r} is unknown; one of {', '.join(PLACEMENTS)}"
            raise ValueError(message)
