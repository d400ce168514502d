"""Settings of the hand-over: section ``[transfer]`` of the configuration file."""

from dataclasses import dataclass

TRANSPORTS = ("ucx", "nixl", "loopback")
WIRE_FORMATS = ("exact", "int8", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """Every wait of a hand-over ends by one of these times (seconds)."""

    transport: str = "ucx"
    """``ucx`` or ``nixl`` between processes; ``loopback`` only where both workers live in one process (tests)."""
    lease_s: float = 10.0
    """How long blocks of a finished prefill wait for an importer."""
    grace_s: float = 1.0
    """How long blocks stay when the importer's stream ended before it accepted: it, or another, may come back."""
    open_timeout_s: float = 10.0
    """How long an importer that came first waits for the prefill to be known here."""
    pull_timeout_s: float = 10.0
    """From asking for blocks to having them, checked."""
    prefill_timeout_s: float = 120.0
    """Longest silence of an exporter between two of its messages while nothing is being pulled."""
    settle_timeout_s: float = 0.5
    """How long bytes of an abandoned hand-over may still land before their receives are cancelled."""
    blocks_in_flight: int = 0
    """Most blocks that one hand-over has asked for and not yet received; 0: as the link's measurement suggests."""
    wire_format: str = "exact"
    """``int8`` or ``fp8``: blocks may be rounded on their way, where both sides say so and the link is slow enough for
    it to pay. The answer is then not exactly that of another way, and its blocks are shared with no other request."""
    gpu_copies: bool = False
    """Between workers of one GPU, copy a lot by one launch in place of UCX. Off until it has been run on a GPU."""
    ucx_tls: str = ""
    """UCX_TLS. Empty: shared memory, CMA and TCP, and CUDA's where a GPU is present."""
    ucx_keepalive_s: float = 1.0
    """How often UCX looks whether its peers live: the longest time that a dead peer's last receives stay pending."""

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the key that cannot be right."""
        if self.transport not in TRANSPORTS:
            message = f"transport: {self.transport!r} is unknown; it must be one of {', '.join(TRANSPORTS)}"
            raise ValueError(message)
        if self.wire_format not in WIRE_FORMATS:
            message = f"wire_format: {self.wire_format!r} is unknown; it must be one of {', '.join(WIRE_FORMATS)}"
            raise ValueError(message)
        for key in (
            "lease_s",
            "grace_s",
            "open_timeout_s",
            "pull_timeout_s",
            "prefill_timeout_s",
            "settle_timeout_s",
            "ucx_keepalive_s",
        ):
            seconds: float = getattr(self, key)
            if not 0 < seconds < float("inf"):
                message = f"{key}: {seconds} is no time to wait; it must be above 0 seconds and finite"
                raise ValueError(message)
        if self.blocks_in_flight < 0:
            message = f"blocks_in_flight: {self.blocks_in_flight} would move nothing; it must be at least 1, or 0"
            raise ValueError(message)
