"""Settings of the section ``[cluster]``: which workers run, and where Ray places them."""

import re
from dataclasses import dataclass

CLUSTER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
PRIVATE_RAY_WORKERS = 64
"""How many workers of each role a private local Ray has room for; the machine's memory is the true limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """``prefill`` : ``decode`` is the ratio at the start; `baton scale` changes it while the cluster runs."""

    name: str = "local"
    prefill: int = 1
    decode: int = 2
    ray_address: str = ""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    start_timeout_s: float = 120.0
    drain_timeout_s: float = 60.0
    restart_budget: int = 5
    restart_window_s: float = 60.0
    directory_restart_s: float = 10.0

    def __post_init__(self) -> None:
        """Raise `ValueError` naming the key when a value cannot be served."""
        if not CLUSTER_NAME.fullmatch(self.name):
            message = f"name: {self.name!r} must be 1 to 32 characters of a-z, 0-9 and -"
            raise ValueError(message)
        for key in ("prefill", "decode"):
            count = getattr(self, key)
            least = 1 if key == "decode" else 0
            if not least <= count <= PRIVATE_RAY_WORKERS:
                message = f"{key}: {count} workers; from {least} to {PRIVATE_RAY_WORKERS} can run"
                raise ValueError(message)
        for key in ("cpus_per_worker", "gpus_per_worker"):
            if not 0 <= getattr(self, key) < float("inf"):
                message = f"{key}: must be 0 or more"
                raise ValueError(message)
        for key in ("start_timeout_s", "drain_timeout_s", "restart_window_s", "directory_restart_s"):
            if not 0 < getattr(self, key) < float("inf"):
                message = f"{key}: must be more than 0 seconds"
                raise ValueError(message)
        if self.restart_budget < 1:
            message = f"restart_budget: {self.restart_budget}; give a worker at least 1 restart"
            raise ValueError(message)
