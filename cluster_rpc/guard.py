"""Every call to a Baton service passes here: requests that cannot be parsed and errors become statuses.

So a servicer only raises. A unary method is ``async def method(self, request, context) -> response``; a streaming one
is an async generator. When a client goes away, the generator is closed before the call ends, so that its ``finally``
blocks run at once and in the call's own task.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from types import AsyncGeneratorType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cluster_core.errors import InvalidField
from cluster_rpc.errors import abort
from cluster_rpc.invalid_text import find_invalid_text

_OUR_METHODS = "/cluster_rpc."

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # a grpc.RpcMethodHandler; its attributes are not in the public stubs


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a request that could not be parsed until the call has a context to abort with."""

    error: InvalidField


class CallGuard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Wraps the methods of Baton's services, and leaves health and reflection alone."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Return the guarded handler of the called method."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_OUR_METHODS):
            return handler
        return _guarded(handler)


def _guarded(handler: Handler) -> Handler:
    parse = handler.request_deserializer
    serialize = handler.response_serializer
    if handler.request_streaming:
        stream = partial(_stream, handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(stream, partial(_parse_streamed, parse), serialize)
    readable = partial(_parse, parse)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(partial(_stream, handler.unary_stream), readable, serialize)
    return grpc.unary_unary_rpc_method_handler(partial(_unary, handler.unary_unary), readable, serialize)


async def _unary(method: Callable[[Any, Context], Awaitable[Any]], request: Any, context: Context) -> Any:
    request_id = getattr(request, "request_id", "")
    try:
        _require_readable(request)
        return await method(request, context)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001  # the outermost frame of a call: a status, and a log line in abort
        await abort(context, error, request_id)


async def _stream(method: Callable[[Any, Context], AsyncIterator[Any]], request: Any, context: Context) -> None:
    request_id = getattr(request, "request_id", "")
    try:
        _require_readable(request)
        answers = method(request, context)
        assert isinstance(answers, AsyncGeneratorType), f"{method} must be an async generator"
        async with aclosing(answers):
            async for answer in answers:
                await context.write(answer)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001  # as in _unary
        await abort(context, error, request_id)


def _require_readable(request: Any) -> None:
    if isinstance(request, Unreadable):
        raise request.error


def _parse(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    """Parse a single request; an unreadable one is answered by `_require_readable`."""
    try:
        return _parse_streamed(parse, raw)
    except InvalidField as error:
        return Unreadable(error)


def _parse_streamed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    """Parse one message of a stream: the servicer's ``async for`` raises what is raised here."""
    try:
        return parse(raw)
    except DecodeError as error:
        kind: Any = getattr(parse, "__self__", None)  # generated code passes Message.FromString
        field = find_invalid_text(kind.DESCRIPTOR, raw) if kind is not None else None
        if field is None:
            name = "request"
            raise InvalidField(
                name, "not a message of this call: client and server must use the same .proto"
            ) from error
        raise InvalidField(field, "not valid UTF-8: send text encoded as UTF-8") from error
