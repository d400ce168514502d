"""The section ``[directory]`` of the configuration file."""

import re
from dataclasses import dataclass

_CLUSTER = re.compile(r"[A-Za-z0-9._-]{1,64}")
CURE = "; serving goes on and it is tried again: does its server run, and is the URL right?"
"""What is added wherever the server's silence is told."""
_SCHEMES = ("redis://", "rediss://", "unix://")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorySettings:
    """Where the directory's server is and how patient its users are."""

    url: str = ""
    """``redis://``, ``rediss://`` or ``unix://``; empty: the launcher starts an embedded server."""
    cluster: str = "baton"
    """Part of every key: clusters of different names share one server without seeing one another."""
    listen_host: str = ""
    """Address of this machine that the embedded server listens on, ``auto`` for the one by which others reach it;
    empty: a private Unix socket."""
    lease_s: float = 5.0
    """A worker that has not renewed its registration for so long is no longer listed."""
    call_timeout_s: float = 0.5
    """How long one call may take. A snapshot is read and written in slices, each of which is a call."""
    gather_s: float = 0.03
    """For so long a worker gathers news of its blocks before it tells them: a prompt that is handed over has none to
    spare for it, and the router believes meanwhile what it has predicted."""
    tail_wait_s: float = 0.25
    """How long a follower's read waits at the server for an event."""
    retry_min_s: float = 0.05
    """The first pause after a failed call; it doubles up to ``retry_max_s``."""
    retry_max_s: float = 2.0
    resync_spread_s: float = 0.2
    """After an outage, workers come back at random moments within this time."""
    snapshot_pause_s: float = 0.5
    """A follower reads a worker's snapshot at most once in this time."""
    event_log_entries: int = 65_536
    """About so many events are kept for followers; who falls further behind takes a snapshot."""
    index_max_blocks: int = 4_000_000
    """The most (worker, block) pairs that a router remembers, about 160 bytes each."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.url and not self.url.startswith(_SCHEMES):
            message = f"url: {self.url!r} must start with one of {', '.join(_SCHEMES)}, or be empty"
            raise ValueError(message)
        if not _CLUSTER.fullmatch(self.cluster):
            message = f"cluster: {self.cluster!r} must be 1 to 64 letters, digits, dots, dashes or underscores"
            raise ValueError(message)
        for key in ("lease_s", "call_timeout_s", "tail_wait_s", "retry_min_s", "retry_max_s", "snapshot_pause_s"):
            if not 0.0 < getattr(self, key) < 3600.0:
                message = f"{key}: must be more than 0 and less than 3600 seconds, not {getattr(self, key)}"
                raise ValueError(message)
        for key in ("resync_spread_s", "gather_s"):
            if not 0.0 <= getattr(self, key) < 3600.0:
                message = f"{key}: must be at least 0 and less than 3600 seconds, not {getattr(self, key)}"
                raise ValueError(message)
        if self.retry_max_s < self.retry_min_s:
            message = f"retry_max_s: must be at least retry_min_s ({self.retry_min_s}), not {self.retry_max_s}"
            raise ValueError(message)
        for key in ("event_log_entries", "index_max_blocks"):
            if getattr(self, key) < 1:
                message = f"{key}: must be at least 1, not {getattr(self, key)}"
                raise ValueError(message)
