"""Sections ``[decode]`` and ``[speculation]`` of the configuration file."""

from dataclasses import dataclass

SPECULATION_METHODS = ("off", "prompt_lookup", "draft_model")
MOST_DRAFT_TOKENS = 64


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationSettings:
    """How decode workers guess tokens ahead. What is written does not depend on it, only how fast."""

    method: str = "prompt_lookup"
    """``prompt_lookup``: what follows where the last tokens stood before, in prompt or answer; ``draft_model``: a
    second, smaller model; ``off``. Either guesses only where that is measured to gain."""
    max_draft_tokens: int = 8
    """Most guesses of one answer in one step."""
    draft_model: str = ""
    """The smaller model's folder; it must have the same vocabulary."""
    draft_total_blocks: int = 0
    """KV blocks of the smaller model; 0: as many as ``decode.total_blocks``."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for what cannot work."""
        if self.method not in SPECULATION_METHODS:
            message = f"method: {self.method!r} is not known; right are {', '.join(SPECULATION_METHODS)}"
            raise ValueError(message)
        if not 1 <= self.max_draft_tokens <= MOST_DRAFT_TOKENS:
            message = f"max_draft_tokens: must be 1 to {MOST_DRAFT_TOKENS}, not {self.max_draft_tokens}"
            raise ValueError(message)
        if (self.method == "draft_model") != bool(self.draft_model):
            message = "draft_model: names a model folder where method is draft_model, and is empty elsewhere"
            raise ValueError(message)
        if self.draft_total_blocks < 0:
            message = "draft_total_blocks: must be 0 or more"
            raise ValueError(message)
