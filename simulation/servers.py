"""gRPC without sockets: the server's side of `simulation.calls`."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from cluster_rpc.guard import CallGuard
from simulation.calls import Call, Parse, Serialize
from simulation.network import Network
from simulation.pipes import OK, Pipe, Status
from simulation.virtual_loop import Host


class CallContext:
    """The servicer's view of a call, as `grpc.aio.ServicerContext`."""

    def __init__(self, call: Call, serialize: Serialize) -> None:
        self.aborted: Status | None = None
        self._call = call
        self._serialize = serialize
        self._loop = asyncio.get_running_loop()
        timeout_s = call.timeout_s
        self._until_s = math.inf if timeout_s is None else self._loop.time() + timeout_s

    async def write(self, message: Any) -> None:
        """Stream one response."""
        responses = self._call.responses
        if responses.full:
            await responses.room()
        responses.send(self._serialize(message))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with a status."""
        self.aborted = Status(code, details, trailing_metadata)
        raise grpc.aio.AbortError

    def time_remaining(self) -> float | None:
        """Return the seconds left by this host's clock, None for no deadline."""
        return None if self._until_s == math.inf else max(0.0, self._until_s - self._loop.time())


class Server:
    """Serves on one host at one address; `add` takes what `cluster_rpc.server` calls a registration."""

    def __init__(self, network: Network, host: Host, address: str) -> None:
        self.network = network
        self.host = host
        self.address = address
        self._handlers: dict[str, tuple[str, Any]] = {}
        """The service and the unguarded handler of each method."""
        self._guarded: dict[str, Any] = {}
        """Those that have been called, behind the real call guard."""
        self._guard = CallGuard()

    def add(self, registration: tuple[str, Callable[[Any, Any], None]], servicer: object) -> None:
        """Serve ``servicer``."""
        registration[1](servicer, self)

    def start(self) -> None:
        """Listen."""
        self.network.servers[self.address] = self

    def stop(self) -> None:
        """Listen no more: who calls is refused."""
        if self.network.servers.get(self.address) is self:
            del self.network.servers[self.address]

    def add_generic_rpc_handlers(self, _handlers: Any) -> None:
        """Do nothing: generated code calls the next method with the same handlers."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Take the methods of a servicer."""
        for name, handler in handlers.items():
            self._handlers[name] = service, handler

    def accept(self, call: Call) -> None:
        """Begin to serve a call that has arrived."""
        handler = self._guarded.get(call.method.path) or self._guard_method(call.method.path)
        if handler is None:
            call.responses.send(Status(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
            call.over_at_server()
        elif not call.responses.closed:
            call.serving = self.network.loop.create_task(self._serve(handler, call), name=f"serve {call.method.path}")

    def _guard_method(self, name: str) -> Any:
        """Return a method's handler behind the real call guard; None where nobody serves it."""
        if name not in self._handlers:
            return None
        service, handler = self._handlers[name]
        details: Any = _Details(service)
        guarded = self._guarded[name] = _run_at_once(self._guard.intercept_service(_constant(handler), details))
        return guarded

    async def _serve(self, handler: Any, call: Call) -> None:
        context = CallContext(call, handler.response_serializer)
        status = OK
        try:
            if handler.request_streaming:
                await handler.stream_stream(_requests(call.requests, handler.request_deserializer), context)
            else:
                request = handler.request_deserializer(await call.requests.read())
                if handler.response_streaming:
                    await handler.unary_stream(request, context)
                else:
                    await context.write(await handler.unary_unary(request, context))
        except grpc.aio.AbortError:
            status = context.aborted or Status(grpc.StatusCode.UNKNOWN)
        except asyncio.CancelledError:
            status = Status(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except Exception as error:  # noqa: BLE001  # the guard lets none out: told as what it is, a mistake
            self.network.loop.call_exception_handler({"message": "a call failed", "exception": error})
            status = Status(grpc.StatusCode.UNKNOWN)
        call.responses.send(status)
        call.over_at_server()


@dataclass(frozen=True, slots=True)
class _Details:
    """Stands for `grpc.HandlerCallDetails`."""

    service: str

    @property
    def method(self) -> str:
        return f"/{self.service}/"


def _constant(handler: Any) -> Any:
    async def continuation(_details: Any) -> Any:
        return handler

    return continuation


def _run_at_once(coroutine: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    message = "the call guard waits"
    raise AssertionError(message)


async def _requests(pipe: Pipe, parse: Parse) -> AsyncIterator[Any]:
    while not isinstance(item := await pipe.read(), Status):
        yield parse(item)
