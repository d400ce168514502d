"""The class whose instances are workers: what Ray makes an actor of, one process each.

The launcher's own process must not import a worker: that brings torch with it, hundreds of megabytes and seconds that
block its event loop. So this small class travels to the actor's process and imports the worker there.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from cluster_core.identity import Role
from cluster_core.settings_reader import Document


class _Worker(Protocol):
    async def describe(self) -> Mapping[str, Any]: ...

    async def close(self) -> None: ...


class WorkerProcess:
    """One worker of either role. Its methods are coroutines, so that `close` may run while `describe` waits."""

    def __init__(self, role: str, document: Document, worker_id: str, directory_url: str) -> None:
        """Start the worker; `describe` tells when it serves."""
        self._worker = _start(Role(role), document, worker_id, directory_url)

    async def describe(self) -> Mapping[str, Any]:
        """Wait until the worker serves and return its registration. Raises what kept it from starting."""
        return await self._worker.describe()

    async def close(self) -> None:
        """Drain the worker and end it; the process stays until Ray ends it."""
        await self._worker.close()


def _start(role: Role, document: Document, worker_id: str, directory_url: str) -> _Worker:
    match role:
        case Role.PREFILL:
            from prefill_worker.actor import PrefillWorkerActor  # noqa: PLC0415 - see above

            return PrefillWorkerActor(document, worker_id, directory_url)
        case Role.DECODE:
            from decode_worker.actor import DecodeWorkerActor  # noqa: PLC0415 - see above

            return DecodeWorkerActor(document, worker_id, directory_url)
