"""Section ``[decode]`` of the configuration file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """Settings of every decode worker."""

    host: str = "127.0.0.1"
    """Where the gRPC server listens; ``auto`` is this machine's address on the network."""
    total_blocks: int = 1024
    token_budget: int = 512
    """Most tokens of one engine step."""
    chunk_tokens: int = 128
    """Most prompt tokens of one engine step: how much a prompt read here may delay running answers."""
    max_running: int = 64
    max_waiting: int = 256
    passing_s: float = 1.0
    """How long smaller requests may pass a bigger one that waits for blocks."""
    import_patience_s: float = 2.0
    """How long an import may hold blocks that others wait for. After that the prompt is read here instead."""
    stream_tokens: int = 1024
    """Unread tokens after which an answer is paused."""
    slow_reader_s: float = 30.0
    """How long an answer stays paused before it is ended."""
    step_timeout_s: float = 60.0
    """How long an engine step may take. After that the worker counts as broken and ends, to be started again."""
    drain_s: float = 30.0
    """How long a worker that is told to end waits for its running requests."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for what cannot work."""
        for key in ("total_blocks", "chunk_tokens", "max_running", "stream_tokens"):
            if getattr(self, key) < 1:
                message = f"{key}: must be at least 1"
                raise ValueError(message)
        for key in ("max_waiting", "passing_s", "import_patience_s", "slow_reader_s", "drain_s"):
            if getattr(self, key) < 0:
                message = f"{key}: must not be negative"
                raise ValueError(message)
        if self.step_timeout_s <= 0:
            message = "step_timeout_s: must be above 0"
            raise ValueError(message)
        if self.token_budget <= self.max_running:
            message = f"token_budget: must be more than max_running ({self.max_running}), or prompts are never read"
            raise ValueError(message)
