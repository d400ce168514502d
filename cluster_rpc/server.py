"""A gRPC server with what every server of Baton has: limits, the call guard, health, reflection.

::

    server = RpcServer(PUBLIC)
    server.add(GENERATION, generation_service)
    address = await server.start("127.0.0.1", 50051)   # raises PartUnavailable
    ...
    await server.close(grace_s=5.0)

Health answers for "" and for each service by name: SERVING after `start`, what `set_serving` says later, NOT_SERVING
from the beginning of `close`.
"""

import errno
import socket
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster_core.errors import PartUnavailable
from cluster_rpc.guard import CallGuard
from cluster_rpc.limits import RpcLimits
from cluster_rpc.v1 import (
    cluster_pb2_grpc,
    generation_pb2_grpc,
    handoff_pb2_grpc,
    link_pb2_grpc,
    worker_pb2_grpc,
)

Registration = tuple[str, Callable[[Any, Any], None]]
"""A service's full name and the generated function that adds a servicer to a server."""

GENERATION: Registration = (
    "cluster_rpc.v1.GenerationService",
    generation_pb2_grpc.add_GenerationServiceServicer_to_server,
)
CLUSTER: Registration = ("cluster_rpc.v1.ClusterService", cluster_pb2_grpc.add_ClusterServiceServicer_to_server)
WORKER: Registration = ("cluster_rpc.v1.WorkerService", worker_pb2_grpc.add_WorkerServiceServicer_to_server)
PREFILL: Registration = ("cluster_rpc.v1.PrefillService", worker_pb2_grpc.add_PrefillServiceServicer_to_server)
DECODE: Registration = ("cluster_rpc.v1.DecodeService", worker_pb2_grpc.add_DecodeServiceServicer_to_server)
LINK: Registration = ("cluster_rpc.v1.LinkService", link_pb2_grpc.add_LinkServiceServicer_to_server)
HANDOFF: Registration = ("cluster_rpc.v1.HandoffService", handoff_pb2_grpc.add_HandoffServiceServicer_to_server)


class RpcServer:
    """Serves the added servicers from `start` to `close`, on the event loop that called `start`."""

    def __init__(self, limits: RpcLimits) -> None:
        self._limits = limits
        self._services: list[tuple[Registration, object]] = []
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
        self._server: grpc.aio.Server | None = None

    def add(self, registration: Registration, servicer: object) -> None:
        """Serve ``servicer``; before `start` only. Its methods raise `BatonError`; see `cluster_rpc.guard`."""
        assert self._server is None, "services are added before the start"
        self._services.append((registration, servicer))

    async def start(self, host: str, port: int) -> str:
        """Listen on ``host``:``port`` (0: a free port) and return the address as clients on this machine write it.

        Raises `PartUnavailable` when the port is taken or the host is not this machine's.
        """
        server = grpc.aio.server(
            interceptors=[CallGuard()],
            options=self._limits.server_options(),
            maximum_concurrent_rpcs=self._limits.calls,
        )
        for (_, add_to_server), servicer in self._services:
            add_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [name for (name, _), _ in self._services]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        bound_port = _bind(server, host, port)
        await self.set_serving(serving=True)
        await server.start()
        self._server = server
        return _address(host, bound_port)

    async def set_serving(self, *, serving: bool) -> None:
        """Tell health checkers whether requests are welcome."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if serving else statuses.NOT_SERVING
        for name in ("", *(name for (name, _), _ in self._services)):
            await self._health.set(name, status)

    async def close(self, grace_s: float = 0.0) -> None:
        """Take no new calls, give running ones ``grace_s`` seconds, then cancel them. May be called twice."""
        server, self._server = self._server, None
        if server is None:
            return
        await self._health.enter_graceful_shutdown()
        await server.stop(grace_s)


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Bind ``server``; an own attempt comes first, because it says why it failed and gRPC does not."""
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)
    except socket.gaierror as error:
        message = f"host {host!r} cannot be resolved ({error.strerror}): name an address of this machine"
        raise PartUnavailable(message) from error
    except OSError as error:
        raise PartUnavailable(_why_not(host, port, error)) from error
    try:
        return server.add_insecure_port(_address(host, port))
    except RuntimeError as error:
        raise PartUnavailable(_why_not(host, port, OSError(errno.EADDRINUSE, ""))) from error


def _why_not(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is taken: choose another (0 means any) or end what listens there"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: choose one that is, such as 127.0.0.1"
        case errno.EACCES | errno.EPERM:
            return f"port {port} of {host} needs privileges: choose one above 1023"
        case _:
            return f"port {port} of {host} cannot be listened on ({error.strerror})"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
