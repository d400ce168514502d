"""What router and workers say to each other, between Baton's nouns and ``worker.proto``.

``..._from_proto`` raises `InvalidField` for what no correct peer sends. Whether a token id or a length suits the model
is for the worker to say, which knows the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.handoff import EXACT, FetchReport, FetchSource, HandoffReport
from cluster_core.identity import Attempt, Incarnation, RequestId, Role, WorkerId
from cluster_core.sampling import Sampling
from cluster_core.workers import WorkerLoad
from cluster_rpc import field_checks as check
from cluster_rpc.errors import clip
from cluster_rpc.link_messages import MAX_LINKS, link_report_to_proto, links_from_proto
from cluster_rpc.sampling_messages import sampling_from_proto, sampling_to_proto
from cluster_rpc.v1 import worker_pb2 as pb

MAX_HOST_BYTES = 280

_ROLES = {Role.PREFILL: pb.ROLE_PREFILL, Role.DECODE: pb.ROLE_DECODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillOrigin:
    """The worker that prefills the prompt of a decode order."""

    worker_id: WorkerId
    incarnation: Incarnation
    address: str
    binding: int = 0
    """How many decode workers were given the attempt before this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """One leg of an attempt, as the router orders it from a worker."""

    request_id: RequestId
    """The client's; with ``~`` and a number where a choice of several goes on alone."""
    attempt: Attempt
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    root_hash: bytes
    """The parent of the prompt's first block hash, 16 bytes."""
    origin: PrefillOrigin | None = None
    """Decode orders only; None: the worker prefills the prompt itself."""
    choices: int = 1
    """How many answers are drawn from the one prompt, each with its own seed (`cluster_core.sampling.choice_seed`)."""
    fetch: FetchSource | None = None
    """For the worker that reads the prompt: whose cache holds more of it."""


def prefill_to_proto(order: WorkOrder) -> pb.PrefillRequest:
    """Order a prefill."""
    assert order.origin is None, "a prefill has no origin"
    return pb.PrefillRequest(
        request_id=order.request_id,
        attempt=order.attempt,
        prompt_token_ids=order.prompt_token_ids,
        sampling=sampling_to_proto(order.sampling),
        root_hash=order.root_hash,
        choices=order.choices,
        fetch=_source_to_proto(order.fetch),
    )


def decode_to_proto(order: WorkOrder) -> pb.DecodeRequest:
    """Order an answer."""
    origin = order.origin
    source = None
    if origin is not None:
        source = pb.HandoffSource(
            worker_id=origin.worker_id,
            incarnation=origin.incarnation,
            address=origin.address,
            binding=origin.binding,
        )
    return pb.DecodeRequest(
        request_id=order.request_id,
        attempt=order.attempt,
        prompt_token_ids=order.prompt_token_ids,
        sampling=sampling_to_proto(order.sampling),
        root_hash=order.root_hash,
        source=source,
        choices=order.choices,
        fetch=_source_to_proto(order.fetch) if origin is None else None,
    )


def order_from_proto(request: pb.PrefillRequest | pb.DecodeRequest) -> WorkOrder:
    """Read an order of either kind. Raises `InvalidField`."""
    origin = None
    if isinstance(request, pb.DecodeRequest) and request.HasField("source"):
        source = request.source
        check.at_most(len(source.address), MAX_HOST_BYTES, "source.address")
        check.at_most(source.binding, check.MAX_BINDINGS, "source.binding")
        origin = PrefillOrigin(
            worker_id=check.worker_id(source.worker_id, "source.worker_id"),
            incarnation=check.incarnation(source.incarnation, "source.incarnation"),
            address=source.address,
            binding=source.binding,
        )
    check.at_most(request.choices, check.MAX_CHOICES, "choices")
    return WorkOrder(
        request_id=check.order_id(request.request_id),
        attempt=check.attempt(request.attempt),
        prompt_token_ids=_prompt(request.prompt_token_ids),
        sampling=sampling_from_proto(request.sampling),
        root_hash=check.root_hash(request.root_hash),
        origin=origin,
        choices=request.choices or 1,
        fetch=_source_from_proto(request.fetch) if request.HasField("fetch") else None,
    )


def status_to_proto(worker_id: WorkerId, incarnation: Incarnation, load: WorkerLoad) -> pb.WorkerStatus:
    """Put a worker's load on the wire."""
    return pb.WorkerStatus(
        worker_id=worker_id,
        incarnation=incarnation,
        waiting_requests=load.waiting_requests,
        running_requests=load.running_requests,
        queued_prefill_tokens=load.queued_prefill_tokens,
        total_blocks=load.total_blocks,
        held_blocks=load.held_blocks,
        cached_blocks=load.cached_blocks,
        engine_steps=load.engine_steps,
        prefill_s_per_token=load.prefill_s_per_token,
        decode_step_s=load.decode_step_s,
        transfer_bytes_per_s=load.transfer_bytes_per_s,
        transfer_fixed_s=load.transfer_fixed_s,
        draining=load.draining,
        orphaned_holds=load.orphaned_holds,
        expired_leases=load.expired_leases,
        preemptions=load.preemptions,
        answer_steps=load.answer_steps,
        written_tokens=load.written_tokens,
        guessed_tokens=load.guessed_tokens,
        accepted_guesses=load.accepted_guesses,
        draft_s=load.draft_s,
        draft_held_blocks=load.draft_held_blocks,
        links=[link_report_to_proto(link) for link in load.links[:MAX_LINKS]],
    )


def load_from_proto(status: pb.WorkerStatus) -> WorkerLoad:
    """Read a worker's load; `identity_from_proto` reads whose it is. Raises `InvalidField`."""
    return WorkerLoad(
        waiting_requests=status.waiting_requests,
        running_requests=status.running_requests,
        queued_prefill_tokens=status.queued_prefill_tokens,
        total_blocks=status.total_blocks,
        held_blocks=status.held_blocks,
        cached_blocks=status.cached_blocks,
        engine_steps=status.engine_steps,
        prefill_s_per_token=check.seconds(status.prefill_s_per_token, "prefill_s_per_token"),
        decode_step_s=check.seconds(status.decode_step_s, "decode_step_s"),
        transfer_bytes_per_s=check.seconds(status.transfer_bytes_per_s, "transfer_bytes_per_s"),
        transfer_fixed_s=check.seconds(status.transfer_fixed_s, "transfer_fixed_s"),
        draining=status.draining,
        orphaned_holds=status.orphaned_holds,
        expired_leases=status.expired_leases,
        preemptions=status.preemptions,
        answer_steps=status.answer_steps,
        written_tokens=status.written_tokens,
        guessed_tokens=status.guessed_tokens,
        accepted_guesses=status.accepted_guesses,
        draft_s=check.seconds(status.draft_s, "draft_s"),
        draft_held_blocks=status.draft_held_blocks,
        links=links_from_proto(status.links),
    )


def identity_from_proto(status: pb.WorkerStatus) -> tuple[WorkerId, Incarnation]:
    """Read whose load a status is. Raises `InvalidField`."""
    return check.worker_id(status.worker_id, "worker_id"), check.incarnation(status.incarnation, "incarnation")


def report_to_proto(report: HandoffReport) -> pb.HandoffReport:
    """Put a hand-over's report on the wire."""
    return pb.HandoffReport(
        moved_blocks=report.moved_blocks,
        kept_blocks=report.kept_blocks,
        moved_bytes=report.moved_bytes,
        messages=report.messages,
        transfer_s=report.transfer_s,
        exposed_s=report.exposed_s,
        transport=report.transport,
        wire_format=report.wire_format,
        exact_bytes=report.exact_bytes,
        overlapped_s=report.overlapped_s,
        unsure_s=report.unsure_s,
    )


def report_from_proto(message: pb.HandoffReport) -> HandoffReport:
    """Read a hand-over's report. Raises `InvalidField`."""
    check.at_most(len(message.transport), 64, "handoff.transport")
    check.at_most(len(message.wire_format), 64, "handoff.wire_format")
    return HandoffReport(
        moved_blocks=message.moved_blocks,
        kept_blocks=message.kept_blocks,
        moved_bytes=message.moved_bytes,
        messages=message.messages,
        transfer_s=check.seconds(message.transfer_s, "handoff.transfer_s"),
        exposed_s=check.seconds(message.exposed_s, "handoff.exposed_s"),
        transport=message.transport,
        wire_format=message.wire_format or EXACT,
        exact_bytes=message.exact_bytes,
        overlapped_s=check.seconds(message.overlapped_s, "handoff.overlapped_s"),
        unsure_s=check.seconds(message.unsure_s, "handoff.unsure_s"),
    )


def fetch_to_proto(report: FetchReport | None) -> pb.FetchReport | None:
    """Put a fetch's report on the wire, if there is one."""
    if report is None:
        return None
    return pb.FetchReport(
        lender=report.lender,
        asked_blocks=report.asked_blocks,
        moved_blocks=report.moved_blocks,
        moved_bytes=report.moved_bytes,
        transfer_s=report.transfer_s,
        elapsed_s=report.elapsed_s,
        failure=clip(report.failure),
    )


def fetch_from_proto(message: pb.FetchReport) -> FetchReport:
    """Read a fetch's report. Raises `InvalidField`."""
    check.at_most(len(message.failure), check.MAX_REASON_BYTES, "fetch.failure")
    return FetchReport(
        lender=check.worker_id(message.lender, "fetch.lender"),
        asked_blocks=message.asked_blocks,
        moved_blocks=message.moved_blocks,
        moved_bytes=message.moved_bytes,
        transfer_s=check.seconds(message.transfer_s, "fetch.transfer_s"),
        elapsed_s=check.seconds(message.elapsed_s, "fetch.elapsed_s"),
        failure=message.failure,
    )


def _source_to_proto(source: FetchSource | None) -> pb.FetchSource | None:
    if source is None:
        return None
    return pb.FetchSource(
        worker_id=source.worker_id,
        incarnation=source.incarnation,
        address=source.address,
        blocks=source.blocks,
        patience_s=source.patience_s,
    )


def _source_from_proto(message: pb.FetchSource) -> FetchSource:
    check.at_most(len(message.address), MAX_HOST_BYTES, "fetch.address")
    check.require(0 < message.blocks <= check.MAX_BLOCKS, "fetch.blocks", f"must be 1 to {check.MAX_BLOCKS}")
    return FetchSource(
        worker_id=check.worker_id(message.worker_id, "fetch.worker_id"),
        incarnation=check.incarnation(message.incarnation, "fetch.incarnation"),
        address=message.address,
        blocks=message.blocks,
        patience_s=check.seconds(message.patience_s, "fetch.patience_s"),
    )


def role_to_proto(role: Role) -> pb.Role:
    """Name a role on the wire."""
    return _ROLES[role]


def role_from_proto(value: int) -> Role:
    """Read a role. Raises `InvalidField` for an unknown one."""
    for role, number in _ROLES.items():
        if number == value:
            return role
    return check.refuse("role", "must be ROLE_PREFILL or ROLE_DECODE")


def _prompt(token_ids: Sequence[int]) -> tuple[int, ...]:
    if not token_ids:
        check.refuse("prompt_token_ids", "must not be empty")
    check.at_most(len(token_ids), check.MAX_TOKENS, "prompt_token_ids")
    return tuple(token_ids)
