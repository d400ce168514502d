"""From the messages of ``generation.proto`` and ``cluster.proto`` to the plain values of `cluster_rpc.answers`."""

from cluster_core.identity import Incarnation, RequestId, WorkerId
from cluster_rpc.answers import (
    AttemptView,
    Candidate,
    Chunk,
    ClusterView,
    Completion,
    StageSpan,
    Timings,
    WorkerView,
)
from cluster_rpc.logprob_messages import input_told, output_told
from cluster_rpc.v1 import cluster_pb2, generation_pb2
from cluster_rpc.worker_messages import fetch_from_proto, load_from_proto, report_from_proto, role_from_proto


def chunk_from_proto(message: generation_pb2.GenerateStreamChunk) -> Chunk:
    """Read a chunk that is not the last."""
    return Chunk(
        token_ids=tuple(message.token_ids),
        text=message.text,
        token_index=message.token_index,
        index=message.index,
        logprobs=output_told(message.output_logprobs),
        prompt_logprobs=input_told(message.input_logprobs),
    )


def last_chunk_from_proto(message: generation_pb2.GenerateComplete) -> Chunk:
    """Read the end of an answer."""
    matched = message.WhichOneof("matched_stop")
    timings = message.timings
    completion = Completion(
        request_id=RequestId(message.request_id),
        finish_reason=message.finish_reason,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        cached_tokens=message.cached_tokens,
        matched_token_id=message.matched_token_id if matched == "matched_token_id" else None,
        matched_stop=message.matched_stop_str if matched == "matched_stop_str" else None,
        seed=message.seed,
        index=message.index,
        timings=Timings(
            queue_s=timings.queue_s,
            prefill_s=timings.prefill_s,
            ttft_s=timings.ttft_s,
            handover_s=timings.handover_s,
            tpot_s=timings.tpot_s,
            total_s=timings.total_s,
        ),
    )
    return Chunk(
        token_ids=(),
        text=message.text,
        token_index=message.completion_tokens,
        completion=completion,
        index=message.index,
    )


def cluster_from_proto(message: cluster_pb2.ListWorkersResponse) -> ClusterView:
    """Read the cluster's state."""
    return ClusterView(
        workers=tuple(_worker(worker) for worker in message.workers),
        mode=message.mode,
        model=message.model,
        live_requests=message.live_requests,
        queued_requests=message.queued_requests,
        directory_url=message.directory_url,
        late_tokens=message.late_tokens,
    )


def attempts_from_proto(message: cluster_pb2.GetPlacementResponse) -> tuple[AttemptView, ...]:
    """Read the explanation of a request, the first attempt first."""
    return tuple(_attempt(attempt) for attempt in message.attempts)


def _worker(message: cluster_pb2.WorkerInfo) -> WorkerView:
    return WorkerView(
        worker_id=WorkerId(message.worker_id),
        incarnation=Incarnation(message.incarnation),
        role=role_from_proto(message.role),
        address=message.address,
        transport=message.transport,
        state=message.state,
        load=load_from_proto(message.status),
        pid=message.pid,
    )


def _attempt(message: cluster_pb2.Attempt) -> AttemptView:
    return AttemptView(
        attempt=message.attempt,
        chosen=_candidate(message.chosen),
        candidates=tuple(_candidate(candidate) for candidate in message.candidates),
        outcome=message.outcome,
        handoff=report_from_proto(message.handoff) if message.HasField("handoff") else None,
        spans=tuple(StageSpan(name=span.name, start_s=span.start_s, end_s=span.end_s) for span in message.spans),
        rung=message.rung,
        kept_of_failed=message.kept_of_failed,
        link=message.link,
        fetch=fetch_from_proto(message.fetch) if message.HasField("fetch") else None,
    )


def _candidate(message: cluster_pb2.PlacementCandidate) -> Candidate:
    return Candidate(
        prefill_worker=WorkerId(message.prefill_worker) if message.prefill_worker else None,
        decode_worker=WorkerId(message.decode_worker),
        total_s=message.total_s,
        terms=tuple((term.name, term.seconds) for term in message.terms),
        prefill_cached_tokens=message.prefill_cached_tokens,
        decode_cached_tokens=message.decode_cached_tokens,
        fetch_worker=WorkerId(message.fetch_worker) if message.fetch_worker else None,
        fetch_blocks=message.fetch_blocks,
    )
