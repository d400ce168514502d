"""Section ``[prefill]`` of the configuration file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillSettings:
    """Settings of every prefill worker."""

    host: str = "127.0.0.1"
    """Where the gRPC server listens; ``auto`` is this machine's address on the network."""
    total_blocks: int = 1024
    token_budget: int = 1024
    """Most tokens of one engine step."""
    chunk_tokens: int = 256
    """Most tokens of one prompt in one engine step: smaller chunks hand over and cancel earlier."""
    max_running: int = 16
    """Prompts of more than ``chunk_tokens`` that have their blocks and share the budget; shorter ones do not count."""
    max_waiting: int = 256
    passing_s: float = 1.0
    """How long smaller prompts may pass a bigger one that waits for blocks."""
    unclaimed_share: float = 0.5
    """Share of the blocks that prompts may take for which no decode worker has room yet; others wait for that."""
    step_timeout_s: float = 60.0
    """How long an engine step may take. After that the worker counts as broken and ends, to be started again."""
    drain_s: float = 30.0
    """How long a worker that is told to end waits for its requests and for promised blocks to be fetched."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for what cannot work."""
        for key in ("total_blocks", "token_budget", "chunk_tokens", "max_running"):
            if getattr(self, key) < 1:
                message = f"{key}: must be at least 1"
                raise ValueError(message)
        if not 0 <= self.unclaimed_share <= 1:
            message = "unclaimed_share: must be 0 to 1"
            raise ValueError(message)
        if self.step_timeout_s <= 0:
            message = "step_timeout_s: must be above 0"
            raise ValueError(message)
        for key in ("max_waiting", "passing_s", "drain_s"):
            if getattr(self, key) < 0:
                message = f"{key}: must not be negative"
                raise ValueError(message)
