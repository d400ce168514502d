"""gRPC without sockets: what a `grpc.aio` channel is to its users, over `simulation.network`.

Life of a call: the client's stub makes it, its request travels to the server's host, where the servicer's method,
wrapped by the real call guard, runs in a task; messages travel back, and last the status. Messages are serialised and
parsed as on a wire. A client that cancels, runs out of time or loses the connection knows at once; the server learns of
it one message later, if at all, and then cancels its task.
"""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
from grpc.aio import EOF as END_OF_STREAM  # type: ignore[attr-defined]  # missing in the stubs

from simulation.network import Network
from simulation.pipes import HALF_CLOSE, Pipe, Status
from simulation.virtual_loop import Host

Parse = Callable[[bytes], Any]
Serialize = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a stub knows of a method."""

    path: str
    serialize: Serialize
    parse: Parse
    request_streaming: bool
    response_streaming: bool


class Call:
    """The client's end, as `grpc.aio` has it: unary or streamed on either side."""

    def __init__(self, channel: "Channel", method: Method, timeout_s: float | None) -> None:
        network, client = channel.network, channel.host
        server = network.servers.get(channel.address)
        self.method = method
        self.network = network
        self.timeout_s = timeout_s
        self._client = client
        self._server_host: Host = server.host if server is not None else network.loop.world
        self.requests = Pipe(network, client, self._server_host)
        self.responses = Pipe(network, self._server_host, client)
        self.serving: asyncio.Task[None] | None = None
        self._status: Status | None = None
        self._cancelled = False
        self._half_closed = False
        self._over_at_server = server is None
        self._deadline: asyncio.TimerHandle | None = None
        self._channel = channel
        channel.calls[self] = None
        network.carry(self)
        network.history.note(network.loop.now, "call", method.path, client.name, channel.address)
        if timeout_s is not None:
            self._deadline = asyncio.get_running_loop().call_later(timeout_s, self._out_of_time)
        if server is None:
            gone = Status(grpc.StatusCode.UNAVAILABLE, "connection refused")
            network.loop.on_host(client, network.delay_s(client, client), self._finish, gone)
        else:
            network.deliver(client, server.host, 0.0, server.accept, self)

    # What users of grpc.aio call

    async def read(self) -> Any:
        """Return the next message or the end of the stream; raises what ended the call otherwise."""
        if self._status is None:
            item = await self.responses.read()
            if not isinstance(item, Status):
                return self.method.parse(item)
            self._finish(item)
        return self._outcome()

    async def write(self, message: Any) -> None:
        """Send one request of a stream."""
        if self._status is not None or self._half_closed:
            detail = "RPC already finished."
            raise asyncio.InvalidStateError(detail)
        if self.requests.full:
            await self.requests.room()
        self.requests.send(self.method.serialize(message))
        if self._status is not None:
            self._outcome()

    async def done_writing(self) -> None:
        """Send no more requests."""
        if self._status is None and not self._half_closed:
            self._half_closed = True
            self.requests.send(HALF_CLOSE)

    async def code(self) -> grpc.StatusCode:
        """Wait for the end, passing over messages."""
        while self._status is None:
            item = await self.responses.read()
            if isinstance(item, Status):
                self._finish(item)
        return self._status.code

    def __await__(self) -> Generator[Any, None, Any]:
        return self._unary().__await__()

    def cancel(self) -> bool:
        """End the call from this end."""
        if self._status is not None:
            return False
        self._cancelled = True
        self._abandon(Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!"))
        return True

    # What the network and the server call

    @property
    def ends(self) -> tuple[Host, Host]:
        """Client and server."""
        return self._client, self._server_host

    def send_requests(self, request: Any) -> None:
        """Send the only request."""
        self.requests.send(self.method.serialize(request))
        self.requests.send(HALF_CLOSE)

    def broken(self, reason: str) -> None:
        """Tell both ends that the connection is gone."""
        self.network.drop(self)
        gone = Status(grpc.StatusCode.UNAVAILABLE, reason)
        self.network.loop.on_host(self._client, 1e-6, self._finish, gone)
        self.network.loop.on_host(self._server_host, 1e-6, self._reset)

    def _outcome(self) -> Any:
        status = self._status
        assert status is not None
        if status.code is grpc.StatusCode.OK:
            return END_OF_STREAM
        if self._cancelled:
            raise asyncio.CancelledError
        raise grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), status.trailers, status.details, "")

    async def _unary(self) -> Any:
        response = await self.read()
        while self._status is None:
            await self.read()
        self._outcome()
        return response

    def _out_of_time(self) -> None:
        self._abandon(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    def _abandon(self, status: Status) -> None:
        """End here, and let the server know."""
        if self._status is None:
            self._finish(status)
            self.network.deliver(self._client, self._server_host, 0.0, self._reset)

    def _finish(self, status: Status) -> None:
        if self._status is not None:
            return
        self._status = status
        self._channel.calls.pop(self, None)
        self._forget_if_over()
        if self._deadline is not None:
            self._deadline.cancel()
        self.responses.end(status)
        if status.code is not grpc.StatusCode.OK:
            self.requests.closed = True
            told = (self._client.name, self._channel.address, status.code.name, status.details)
            self.network.history.note(self.network.loop.now, "call failed", self.method.path, *told)

    def _reset(self) -> None:
        """On the server: the client is gone."""
        self.requests.end(Status(grpc.StatusCode.CANCELLED, "the client is gone"))
        self.responses.closed = True
        self.over_at_server()
        if self.serving is not None:
            self.serving.cancel()

    def over_at_server(self) -> None:
        """Note that the server has nothing more to do."""
        self._over_at_server = True
        self._forget_if_over()

    def _forget_if_over(self) -> None:
        if self._over_at_server and self._status is not None:
            self.network.drop(self)


class Channel:
    """What stubs are made of: a connection of one host to one address."""

    def __init__(self, network: Network, host: Host, address: str) -> None:
        self.network = network
        self.host = host
        self.address = address
        self.calls: dict[Call, None] = {}
        self._closed = False

    def unary_unary(self, path: str, request_serializer: Serialize, response_deserializer: Parse, **_: Any) -> Any:
        """Return a method of one request and one response."""
        return self._method(path, request_serializer, response_deserializer, streams=(False, False))

    def unary_stream(self, path: str, request_serializer: Serialize, response_deserializer: Parse, **_: Any) -> Any:
        """Return a method of one request and a stream of responses."""
        return self._method(path, request_serializer, response_deserializer, streams=(False, True))

    def stream_stream(self, path: str, request_serializer: Serialize, response_deserializer: Parse, **_: Any) -> Any:
        """Return a method of two streams."""
        return self._method(path, request_serializer, response_deserializer, streams=(True, True))

    async def close(self, _grace: float | None = None) -> None:
        """End every call, and take no more."""
        self._closed = True
        for call in list(self.calls):
            call.cancel()

    def _method(self, path: str, serialize: Serialize, parse: Parse, streams: tuple[bool, bool]) -> Callable[..., Call]:
        method = _method_of(path, serialize, parse, streams)

        def start(request: Any = None, timeout: float | None = None) -> Call:
            if self._closed:
                message = "Channel is closed."
                raise grpc.aio.UsageError(message)
            call = Call(self, method, timeout)
            if not method.request_streaming:
                call.send_requests(request)
            return call

        return start


@cache
def _method_of(path: str, serialize: Serialize, parse: Parse, streams: tuple[bool, bool]) -> Method:
    return Method(
        path=path.rpartition("/")[2],
        serialize=serialize,
        parse=parse,
        request_streaming=streams[0],
        response_streaming=streams[1],
    )
