"""A private local Ray, or the one that runs at an address.

Life: `RayCluster.start` runs ``ray.init`` on one thread of its own, for two reasons. A Ctrl-C during the many seconds
of a start must not tear ``ray.init`` apart half-way, and Ray asks the kernel to end its processes when the *thread*
that started them ends, so that thread has to live as long as the cluster. `close` disconnects; a private Ray ends with
it. Other Rays of the machine are never touched: no ``ray stop``, no killing by name.
"""

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster_core.errors import PartUnavailable
from cluster_core.identity import Role
from cluster_launcher.settings import PRIVATE_RAY_WORKERS, ClusterSettings

ROLE_RESOURCES = {Role.PREFILL: "baton_prefill", Role.DECODE: "baton_decode"}
"""The custom resource that a node must have for a worker of the role to run on it."""
_OBJECT_STORE_BYTES = 100_000_000
_TOO_SLOW = "timed out during startup"
"""Ray gives its own node 30 seconds. On a busy machine the first try may miss them; the second finds warm files."""
_LONGEST_SOCKET_FOLDER = 40
"""Ray's socket paths add about 65 characters to the folder, and a Unix socket's path ends at 107."""


class RayCluster:
    """The connection to Ray; ``ray`` is the module, usable between `start` and `close`."""

    def __init__(self, settings: ClusterSettings, *, verbose: bool = False) -> None:
        """Only remember; `start` does the work."""
        self._settings = settings
        self._verbose = verbose
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray")
        self._folder: Path | None = None
        self._folders: list[Path] = []
        self._ray: ModuleType | None = None

    @property
    def ray(self) -> Any:
        """The module ``ray``, connected."""
        assert self._ray is not None, "start() first"
        return self._ray

    @property
    def is_private(self) -> bool:
        """Whether this process owns the Ray it uses."""
        return not self._settings.ray_address

    async def start(self) -> str:
        """Connect, and return what Ray calls its address. Raises `PartUnavailable` with the cure."""
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(self._thread, self._connect)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # ray.init cannot be stopped half-way: let it finish, so that close() finds whole things to end.
            await asyncio.wait([starting])
            raise

    async def close(self) -> None:
        """Disconnect and end a private Ray's processes. Idempotent."""
        if self._ray is not None:
            ray, self._ray = self._ray, None
            await asyncio.get_running_loop().run_in_executor(self._thread, ray.shutdown)
        self._thread.shutdown(wait=False)

    def remove_folders(self) -> None:
        """Remove a private Ray's files, once its last process has written its last line."""
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)

    def _connect(self) -> str:
        import ray  # noqa: PLC0415 - two seconds that `baton --help` should not take

        for last in (False, True):
            options = self._private_options() if self.is_private else {"address": self._settings.ray_address}
            try:
                ray.init(
                    **options,
                    namespace=f"baton-{self._settings.name}",
                    log_to_driver=self._verbose,
                    logging_level=logging.INFO if self._verbose else logging.ERROR,
                )
                break
            except Exception as error:  # Ray raises many kinds here, all of them meaning the same to the user
                ray.shutdown()
                if last or _TOO_SLOW not in str(error):
                    raise PartUnavailable(self._why(error)) from error
        self._ray = ray
        return str(ray.get_runtime_context().gcs_address)

    def _private_options(self) -> dict[str, Any]:
        parent = tempfile.gettempdir()
        if len(parent) > _LONGEST_SOCKET_FOLDER - len("/baton-12345678/ray"):
            parent = "/tmp"  # noqa: S108 - mkdtemp below makes the folder private
        # Ray opens its folder to everybody; the one around it, which mkdtemp makes, lets nobody else in.
        self._folder = Path(tempfile.mkdtemp(prefix="baton-", dir=parent))
        self._folders.append(self._folder)
        cpus = max(1.0, self._settings.cpus_per_worker) * 2 * PRIVATE_RAY_WORKERS
        options: dict[str, Any] = {
            "address": "local",
            "num_cpus": int(cpus),
            "resources": dict.fromkeys(ROLE_RESOURCES.values(), PRIVATE_RAY_WORKERS),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": str(self._folder / "ray"),
            # One process a declared CPU would be started beforehand, and nearly all CPUs here are declared, not there.
            "_system_config": {"prestart_worker_first_driver": False},
        }
        return options

    def _why(self, error: Exception) -> str:
        text = " ".join(str(error).split())[:300]
        if self.is_private:
            return (
                f"Ray: the private local Ray did not start ({text}); free memory or disk space in "
                f"{tempfile.gettempdir()}, run with --verbose to see Ray's own log, or set cluster.ray_address"
            )
        return (
            f"cluster.ray_address: no Ray answers at {self._settings.ray_address!r} ({text}); start one with "
            f'`ray start --head`, check its token (`ray get-auth-token`), or set ray_address = "" for a private one'
        )

    def actor_row(self, handle: Any) -> Mapping[str, Any]:
        """Return Ray's table row of an actor; empty when Ray has none. Blocks for a call to Ray's control store."""
        from ray._private import state  # noqa: PLC0415 - as above; the public API asks a dashboard that is off here

        row: Mapping[str, Any] = state.state.actor_table(handle._actor_id.hex())  # noqa: SLF001 - no public spelling
        return row

    def last_log_line(self, pid: int) -> str:
        """Return the last line that the worker process ``pid`` of a private Ray wrote to standard error."""
        if self._folder is None:
            return ""
        for log in self._folder.glob(f"ray/session_latest/logs/worker-*-{pid}.err"):
            lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
            said = [line for line in lines if line and not line.startswith(":")]
            if said:
                return said[-1][:300]
        return ""
