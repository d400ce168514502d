"""Workers as a request's flow sees them: calls that say what the machine makes them say."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import grpc
from grpc.aio import EOF as END_OF_STREAM  # type: ignore[attr-defined]  # missing in the stubs

from cluster_core.errors import BatonError
from cluster_core.hash_chain import root_hash
from cluster_core.identity import Attempt, Incarnation, RequestId, Role, WorkerId
from cluster_core.placement import Local
from cluster_rpc.errors import status_of
from cluster_rpc.v1 import worker_pb2 as pb
from cluster_rpc.worker_messages import WorkOrder, order_from_proto
from router.balancer import Candidate, Choice
from router.membership import Worker
from router.placer import Avoided, Placed
from router.worker_connection import WorkerConnection
from tests.block_directory.samples import record
from tests.router.fake_workers import answer

POISON = 999


@dataclass(slots=True, eq=False)
class Call:
    """One leg as its worker has it. ``over``: it has ended its stream; ``cancelled``: the router has."""

    worker: Worker
    order: WorkOrder
    role: Role
    split: bool
    written: int = 0
    over: bool = False
    cancelled: bool = False
    _events: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)

    async def read(self) -> Any:
        event = await self._events.get()
        if isinstance(event, grpc.RpcError):
            raise event
        return event

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def live(self) -> bool:
        return not (self.over or self.cancelled)

    def tell_first(self) -> None:
        """Tell a prompt's first token, as a prefill worker does; then that nothing is on offer any more."""
        if not self.written:
            self.written = 1
            self._events.put_nowait(pb.PrefillEvent(first_token=pb.FirstToken(token_id=self._answer(1)[0])))
            return
        self._events.put_nowait(END_OF_STREAM)
        self.over = True

    def write(self, count: int) -> None:
        """Write on. Where a prefill worker tells the first token, this one may tell it too."""
        self.written = max(self.written, int(self.split))
        most = self.order.sampling.max_tokens
        fresh = self._answer(min(most, self.written + count))[self.written :]
        if fresh:
            tokens = pb.Tokens(offset=self.written, token_ids=fresh)
            self._events.put_nowait(pb.DecodeEvent(tokens=tokens))
            self.written += len(fresh)
        if self.written == most:
            self._events.put_nowait(END_OF_STREAM)
            self.over = True

    def write_poison(self) -> None:
        """Say what no living attempt would."""
        self._events.put_nowait(pb.DecodeEvent(tokens=pb.Tokens(offset=self.written, token_ids=[POISON])))

    def break_down(self, error: BatonError | None) -> None:
        """End with an error of the worker's, or break as a dead worker's connection does."""
        self.over = True
        trailing: Sequence[tuple[str, bytes]] = ()
        code = grpc.StatusCode.UNAVAILABLE
        if error is not None:
            status = status_of(error)
            code = next(each for each in grpc.StatusCode if each.value[0] == status.code)
            trailing = (("grpc-status-details-bin", status.SerializeToString()),)
        failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), str(error), None)
        self._events.put_nowait(failure)

    def _answer(self, count: int) -> list[int]:
        return answer(self.order.prompt_token_ids, count)


class Connection:
    """The calls to one worker; ``calls`` is everybody's list."""

    def __init__(self, calls: list[Call]) -> None:
        self.worker: Worker
        self._calls = calls

    def prefill(self, request: pb.PrefillRequest, **_: object) -> Call:
        return self._open(request, Role.PREFILL, split=True)

    def decode(self, request: pb.DecodeRequest, **_: object) -> Call:
        return self._open(request, Role.DECODE, split=request.HasField("source"))

    def _open(self, request: pb.PrefillRequest | pb.DecodeRequest, role: Role, *, split: bool) -> Call:
        order = order_from_proto(request)
        twin = [
            call
            for call in self._calls
            if call.live
            and (call.order.request_id, call.order.attempt, call.role) == (order.request_id, order.attempt, role)
        ]
        assert not twin, "an attempt was submitted twice"
        call = Call(self.worker, order, role, split)
        self._calls.append(call)
        return call


def scripted_worker(name: str, role: Role, life: int, calls: list[Call]) -> Worker:
    connection = Connection(calls)
    made = record(name, life, role)
    worker = Worker(record=made, connection=cast("WorkerConnection", connection), refusal=None, alive=True)
    connection.worker = worker
    return worker


class ScriptedPlacer:
    """Places as it is told, and keeps the ledger that must be empty at the end."""

    def __init__(self, calls: list[Call]) -> None:
        self.split = True
        self.rebinds = False
        """Whether there is another decode worker for an attempt whose own has failed."""
        self.ledger: set[tuple[RequestId, Attempt]] = set()
        self._calls = calls
        self._lives = 0

    def root_hash(self, cache_salt: str) -> bytes:
        return root_hash(b"model", cache_salt)

    async def place(
        self,
        _root: bytes,
        _prompt: Sequence[int],
        _max_tokens: int,
        _avoided: Avoided,
        _choices: int = 1,
        _deadline: float | None = None,
    ) -> Placed:
        self._lives += 2
        prefill = scripted_worker("prefill-0", Role.PREFILL, self._lives, self._calls) if self.split else None
        decode = scripted_worker("decode-0", Role.DECODE, self._lives + 1, self._calls)
        chosen = Candidate(
            placement=Local(worker=WorkerId("decode-0")),
            total_s=0.0,
            terms=(),
            prefill_cached_tokens=0,
            decode_cached_tokens=0,
            prefill_tokens=1,
        )
        return Placed(choice=Choice(chosen=chosen, candidates=()), prefill=prefill, decode=decode)

    def place_decode(self, placed: Placed, order: WorkOrder, _avoided: Avoided) -> Placed | None:
        """Choose another decode worker while the prefill leg stays, unless there is none."""
        if not self.rebinds:
            return None
        origin = order.origin
        assert origin is not None, "a leg without a prefill leg was bound anew"
        self._lives += 1
        decode = scripted_worker("decode-0", Role.DECODE, self._lives, self._calls)
        return replace(placed, decode=decode)

    def place_waiting(self, _placed: Placed, _order: WorkOrder, _avoided: Avoided) -> Placed | None:
        """Nobody has room either."""
        return None

    def rebound(self, old: Placed, new: Placed, key: tuple[RequestId, Attempt], _order: WorkOrder) -> None:
        assert key in self.ledger
        assert old.prefill is new.prefill

    def blocks_kept(self, _worker: Worker, _order: WorkOrder, _blocks: int) -> None:
        """Nothing is to be done."""

    def assign(self, _placed: Placed, key: tuple[RequestId, Attempt], _tokens: int, _choices: int = 1) -> None:
        assert key not in self.ledger, "an attempt was entered twice"
        self.ledger.add(key)

    def prompt_read(self, _placed: Placed, key: tuple[RequestId, Attempt]) -> None:
        assert key in self.ledger

    def ended(self, _placed: Placed, key: tuple[RequestId, Attempt]) -> None:
        self.ledger.remove(key)


class ScriptedMembership:
    """Hears of suspicions."""

    def suspect(self, worker_id: WorkerId, incarnation: Incarnation) -> None:
        """Nothing is to be done."""
