import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from cluster_core import errors as tree
from cluster_core.errors import BatonError
from cluster_core.identity import WorkerId
from cluster_rpc.errors import (
    INTERNAL_TEXT,
    MAX_TEXT_BYTES,
    TABLE,
    clip,
    from_rpc_error,
    from_worker_error,
    status_of,
)

CLASSES = [kind for kind in vars(tree).values() if isinstance(kind, type) and issubclass(kind, BatonError)]
WORKER = WorkerId("decode-0")


def example(kind: type[BatonError]) -> BatonError:
    if issubclass(kind, tree.RequestError):
        return kind("chat.messages[2].role", "is 'cook': must be one of system, user, assistant")
    if issubclass(kind, tree.RetryLater):
        return kind("the queue is full", 2.5)
    return kind("one line that a person can act on")


def received(status: status_pb2.Status) -> grpc.aio.AioRpcError:
    """Return what grpc.aio raises in a client for ``status``."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, status.message, "")


def bare(code: grpc.StatusCode, text: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), text, "")


def test_every_class_of_the_tree_has_its_own_row() -> None:
    assert set(TABLE) == set(CLASSES)
    assert len({row.reason for row in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_is_the_same_after_the_wire(kind: type[BatonError]) -> None:
    sent = example(kind)
    for got in (
        from_rpc_error(received(status_of(sent, "r-1"))),
        from_worker_error(received(status_of(sent, "r-1")), WORKER),
    ):
        if kind is BatonError and isinstance(got, tree.WorkerLost):
            continue
        assert type(got) is kind
        assert str(got) == str(sent)
        if isinstance(sent, tree.RequestError):
            assert isinstance(got, tree.RequestError)
            assert (got.field, got.reason) == (sent.field, sent.reason)
        if isinstance(sent, tree.RetryLater):
            assert isinstance(got, tree.RetryLater)
            assert got.retry_after_s == sent.retry_after_s


def test_details_name_reason_request_field_and_delay() -> None:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = status_of(example(tree.InvalidField), "r-1")
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_FIELD", "baton", {"request_id": "r-1"})
    assert bad.field_violations[0].field == "chat.messages[2].role"
    retry = error_details_pb2.RetryInfo()
    assert status_of(example(tree.Overloaded)).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_an_unusable_request_id_is_not_sent_back() -> None:
    info = error_details_pb2.ErrorInfo()
    assert status_of(example(tree.InvalidField), "a b" * 100_000).details[0].Unpack(info)
    assert not info.metadata


def test_nothing_of_an_unexpected_exception_gets_out() -> None:
    status = status_of(KeyError("password=hunter2"))
    assert (status.code, status.message) == (grpc.StatusCode.INTERNAL.value[0], INTERNAL_TEXT)
    assert b"hunter2" not in status.SerializeToString()


def test_a_subclass_travels_as_its_parent() -> None:
    class DiskFull(tree.TransferFailed):
        """Known to one worker only."""

    assert type(from_rpc_error(received(status_of(DiskFull("no space"))))) is tree.TransferFailed


def test_long_texts_are_cut_between_characters() -> None:
    assert clip("short\nand plain") == "short and plain"
    cut = clip("語" * 1000)
    assert len(cut.encode()) <= MAX_TEXT_BYTES
    assert cut.endswith("語...")
    assert clip("\ud800") == "?"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, tree.PartUnavailable),
        (grpc.StatusCode.UNIMPLEMENTED, tree.PartUnavailable),
        (grpc.StatusCode.CANCELLED, tree.Cancelled),
        (grpc.StatusCode.DEADLINE_EXCEEDED, tree.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, tree.Overloaded),
        (grpc.StatusCode.INVALID_ARGUMENT, tree.InvalidField),
        (grpc.StatusCode.UNKNOWN, BatonError),
    ],
)
def test_a_status_without_our_details_still_means_something_to_a_client(
    code: grpc.StatusCode, kind: type[BatonError]
) -> None:
    assert type(from_rpc_error(bare(code, "text"), "127.0.0.1:50051")) is kind


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNIMPLEMENTED,
    ],
)
def test_a_worker_that_does_not_answer_in_our_words_is_lost(code: grpc.StatusCode) -> None:
    error = from_worker_error(bare(code, "connection reset"), WORKER)
    assert type(error) is tree.WorkerLost
    assert "decode-0" in str(error)


def test_a_worker_whose_code_failed_is_lost() -> None:
    assert type(from_worker_error(received(status_of(KeyError("x"))), WORKER)) is tree.WorkerLost


def test_a_deadline_at_a_worker_stays_a_deadline() -> None:
    assert type(from_worker_error(bare(grpc.StatusCode.DEADLINE_EXCEEDED), WORKER)) is tree.DeadlineExceeded


def test_details_that_cannot_be_read_are_ignored() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), trailers, "text", "")
    assert type(from_rpc_error(error)) is tree.InvalidField
