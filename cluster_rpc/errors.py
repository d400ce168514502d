"""The one table between Baton's errors and gRPC statuses, and the two ways through it.

A server turns a `BatonError` into a status with rich details (`status_of`, `abort`)::

    google.rpc.ErrorInfo     reason (a stable word), domain "baton", metadata {request_id}
    google.rpc.BadRequest    the field, for a RequestError
    google.rpc.RetryInfo     the delay, for a RetryLater

The other side reads the reason and raises the same class again: `from_rpc_error` for clients of the router,
`from_worker_error` for the router's calls to workers, where a status without a reason means that the worker is gone.
An exception that is no `BatonError` is our mistake: it is logged, and the client gets one fixed sentence.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cluster_core import errors as tree
from cluster_core.errors import BatonError, InvalidField, PartUnavailable, RequestError, RetryLater, WorkerLost
from cluster_core.identity import WorkerId

ERROR_DOMAIN = "baton"
INTERNAL_TEXT = "internal error: the server's log has the cause"
MAX_TEXT_BYTES = 512  # a status travels twice in trailers that hold 8 KiB, and its text is percent-encoded there

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DETAILS_KEY = "grpc-status-details-bin"
_DEFAULT_RETRY_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """How one class travels: the status code for everyone, the reason for programs that know Baton."""

    code: grpc.StatusCode
    reason: str


TABLE: dict[type[BatonError], Row] = {
    tree.BatonError: Row(grpc.StatusCode.INTERNAL, "BATON_ERROR"),
    tree.RequestError: Row(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ERROR"),
    tree.InvalidField: Row(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    tree.TokenOutOfRange: Row(grpc.StatusCode.OUT_OF_RANGE, "TOKEN_OUT_OF_RANGE"),
    tree.ContextTooLong: Row(grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_TOO_LONG"),
    tree.NotServed: Row(grpc.StatusCode.NOT_FOUND, "NOT_SERVED"),
    tree.DuplicateRequest: Row(grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REQUEST"),
    tree.RetryLater: Row(grpc.StatusCode.UNAVAILABLE, "RETRY_LATER"),
    tree.Overloaded: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    tree.NoWorker: Row(grpc.StatusCode.UNAVAILABLE, "NO_WORKER"),
    tree.RequestEnded: Row(grpc.StatusCode.CANCELLED, "REQUEST_ENDED"),
    tree.Cancelled: Row(grpc.StatusCode.CANCELLED, "CANCELLED"),
    tree.DeadlineExceeded: Row(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    tree.LegFailed: Row(grpc.StatusCode.UNAVAILABLE, "LEG_FAILED"),
    tree.WorkerLost: Row(grpc.StatusCode.UNAVAILABLE, "WORKER_LOST"),
    tree.TransferFailed: Row(grpc.StatusCode.DATA_LOSS, "TRANSFER_FAILED"),
    tree.ExportGone: Row(grpc.StatusCode.ABORTED, "EXPORT_GONE"),
    tree.OperatorError: Row(grpc.StatusCode.FAILED_PRECONDITION, "OPERATOR_ERROR"),
    tree.SettingsError: Row(grpc.StatusCode.FAILED_PRECONDITION, "SETTINGS_ERROR"),
    tree.ModelFolderError: Row(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_FOLDER_ERROR"),
    tree.PartUnavailable: Row(grpc.StatusCode.FAILED_PRECONDITION, "PART_UNAVAILABLE"),
}
_CLASS_OF = {row.reason: kind for kind, row in TABLE.items()}

_WITHOUT_DETAILS: dict[grpc.StatusCode, Callable[[str, str], BatonError]] = {
    grpc.StatusCode.UNAVAILABLE: lambda there, text: PartUnavailable(
        f"nothing answers at {there} ({text}): start the cluster or name its address"
    ),
    grpc.StatusCode.UNIMPLEMENTED: lambda there, _: PartUnavailable(
        f"what answers at {there} does not serve this call: check address and version"
    ),
    grpc.StatusCode.CANCELLED: lambda there, _: tree.Cancelled(f"the call to {there} was cancelled"),
    grpc.StatusCode.DEADLINE_EXCEEDED: lambda there, _: tree.DeadlineExceeded(f"the time given to {there} is up"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: lambda _, text: InvalidField("request", text),
    grpc.StatusCode.INVALID_ARGUMENT: lambda _, text: InvalidField("request", text),
}
"""What a status made by gRPC itself means to a client: (address, text) -> error."""


def status_of(error: BaseException, request_id: str = "") -> status_pb2.Status:
    """Return the status that tells a client of ``error``. Nothing of an unexpected exception gets out."""
    kind = next((kind for kind in type(error).__mro__ if kind in TABLE), None)
    row = TABLE[kind] if kind else Row(grpc.StatusCode.INTERNAL, "INTERNAL")
    text = clip(str(error)) if kind else INTERNAL_TEXT
    info = error_details_pb2.ErrorInfo(reason=row.reason, domain=ERROR_DOMAIN)
    if _REQUEST_ID.fullmatch(request_id):
        info.metadata["request_id"] = request_id
    details: list[Any] = [info]
    if isinstance(error, RequestError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=clip(error.field), description=clip(error.reason))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, RetryLater):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(1, round(error.retry_after_s * 1000)))
        details.append(retry)
    status = status_pb2.Status(code=row.code.value[0], message=text)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: BaseException, request_id: str = "") -> NoReturn:
    """End a call with the status of ``error``; logs it with its trace when it is not one that Baton raises."""
    if not isinstance(error, BatonError):
        logger.error("unexpected exception while serving request %r", request_id, exc_info=error)
    status = rpc_status.to_status(status_of(error, request_id))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError  # context.abort always raises


def from_rpc_error(error: grpc.RpcError, address: str = "") -> BatonError:
    """Return the `BatonError` that the server at ``address`` meant, or that the lack of an answer amounts to."""
    rich = _rich_error(error)
    if rich is not None:
        return rich
    code, text = _code_and_text(error)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" not in text:
        return tree.Overloaded(clip(text), _DEFAULT_RETRY_S)
    meaning = _WITHOUT_DETAILS.get(code)
    return meaning(address or "the address", clip(text)) if meaning else BatonError(f"{code.name}: {clip(text)}")


def from_worker_error(error: grpc.RpcError, worker: WorkerId) -> BatonError:
    """Return the `BatonError` that a worker's status means to the router or to another worker.

    A status that carries no reason of ours was made by gRPC, not by a living worker's code: the worker is lost. So is
    one whose code failed in an unforeseen way. Only a deadline stays a deadline.
    """
    rich = _rich_error(error)
    if rich is not None and type(rich) is not BatonError:
        return rich
    code, text = _code_and_text(error)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return tree.DeadlineExceeded(f"the time given to {worker} is up")
    return WorkerLost(f"{worker} is lost ({code.name}: {clip(text)})")


def clip(text: str) -> str:
    """Return ``text`` as valid UTF-8 that fits in a status: on one line, cut at `MAX_TEXT_BYTES`."""
    encoded = " ".join(text.split()).encode(errors="replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return encoded.decode()
    return encoded[: MAX_TEXT_BYTES - 3].decode(errors="ignore") + "..."


def _rich_error(error: grpc.RpcError) -> BatonError | None:
    """Rebuild the error from its details; None where there are none of ours."""
    details = _details_by_kind(error)
    info = details.get(error_details_pb2.ErrorInfo)
    if info is None or info.domain != ERROR_DOMAIN:
        return None
    _, text = _code_and_text(error)
    kind = _CLASS_OF.get(info.reason, BatonError)
    if issubclass(kind, RequestError):
        bad = details.get(error_details_pb2.BadRequest, error_details_pb2.BadRequest())
        for violation in bad.field_violations:
            return kind(violation.field, violation.description)
        return kind("request", text)
    if issubclass(kind, RetryLater):
        retry = details.get(error_details_pb2.RetryInfo)
        return kind(text, retry.retry_delay.ToMilliseconds() / 1000 if retry else _DEFAULT_RETRY_S)
    return kind(text)


def _details_by_kind(error: grpc.RpcError) -> dict[type[Any], Any]:
    """Unpack the details that Baton uses; an unreadable status has none."""
    trailers: Any = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError) else ()
    raw = next((value for key, value in trailers or () if key == _DETAILS_KEY), None)
    found: dict[type[Any], Any] = {}
    if raw is None:
        return found
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    try:
        status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else raw.encode())
        for packed in status.details:
            for kind in kinds:
                message = kind()
                if packed.Is(kind.DESCRIPTOR) and packed.Unpack(message):
                    found[kind] = message
    except DecodeError:
        return {}
    return found


def _code_and_text(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code(), error.details() or ""
    return grpc.StatusCode.UNKNOWN, str(error)
