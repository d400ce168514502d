"""A request's flow and the workers that fail it (failures I4, I5, I6, I10, I12, I13, I17).

Legs write, die, refuse, fall silent and speak again; the client leaves. Whatever happens: the client has a beginning of
the answer that one undisturbed worker would write, each token once; it is told of success only with all of it; no
attempt is submitted twice; afterwards every call has ended or was cancelled, and the ledger is empty.
"""

import asyncio
from typing import cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster_core.errors import BatonError, ExportGone, LegFailed, NoWorker, Overloaded, TransferFailed
from cluster_core.identity import RequestId, Role
from cluster_core.sampling import Sampling
from cluster_rpc.v1 import generation_pb2 as pb
from router.membership import Membership
from router.placement_history import PlacementHistory
from router.placer import Placer
from router.prompt import PreparedRequest
from router.request_flow import FlowParts, RequestFlow
from router.settings import RouterSettings
from router.text_stream import TextOptions
from router.timeline import Timeline
from tests.machines.jumping_loop import JumpingLoop
from tests.machines.scripted_workers import Call, ScriptedMembership, ScriptedPlacer
from tests.machines.token_stream import WordText
from tests.router.fake_workers import answer

ERRORS: list[BatonError | None] = [
    None,
    LegFailed("a step failed"),
    TransferFailed("a block was torn"),
    ExportGone("nobody came"),
    Overloaded("8 requests wait", 0.5),
]
PICKS = st.integers(0, 3)
END_S = 30.0


class RequestFlowMachine(RuleBasedStateMachine):
    """``told`` is what the client has; ``outcome`` is how its stream ended."""

    @initialize(prompt=st.lists(st.integers(1, 9), min_size=1, max_size=3), most=st.integers(1, 8), split=st.booleans())
    def start(self, prompt: list[int], most: int, split: bool) -> None:
        self.loop = JumpingLoop()
        self.calls: list[Call] = []
        self.placer = ScriptedPlacer(self.calls)
        self.placer.split = split
        self.whole = answer(prompt, most)
        self.told: list[int] = []
        self.outcome = ""
        parts = FlowParts(
            placer=cast("Placer", self.placer),
            membership=cast("Membership", ScriptedMembership()),
            history=PlacementHistory(4),
            settings=RouterSettings(max_attempts=4, leg_buffer_events=3),
            clock=self.loop.time,
        )
        sampling = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0, max_tokens=most, stop_token_ids=frozenset())
        prepared = PreparedRequest(
            request_id=RequestId("r"),
            prompt_token_ids=tuple(prompt),
            sampling=sampling,
            text=TextOptions(),
            cache_salt="",
            priority=0,
            seed=0,
        )

        def serve() -> "asyncio.Task[None]":
            flow = RequestFlow(parts, prepared, lambda: WordText(None), Timeline(self.loop.time), None)
            return asyncio.get_running_loop().create_task(self._serve(flow))

        self.serving = self.loop.do(serve)

    async def _serve(self, flow: RequestFlow) -> None:
        """Do what the service does with a flow."""
        try:
            while not flow.over:
                self._take(await flow.next_response())
        except (NoWorker, Overloaded):
            assert not self.outcome
            self.outcome = "error"
        finally:
            await flow.close()

    def _take(self, response: pb.GenerateResponse) -> None:
        assert not self.outcome, "something came after the end"
        if response.WhichOneof("response") == "chunk":
            assert response.chunk.token_index == len(self.told)
            self.told += response.chunk.token_ids
            return
        assert self.told == self.whole, "success was told of an answer that is not whole"
        assert response.complete.completion_tokens == len(self.whole)
        self.outcome = "complete"

    @precondition(lambda self: any(call.live for call in self.calls))
    @rule(pick=PICKS, count=st.integers(1, 3))
    def go_on(self, pick: int, count: int) -> None:
        """Let a worker do the next piece of its work."""
        self._go_on(self._live()[pick % len(self._live())], count)

    def _go_on(self, call: Call, count: int) -> None:
        self.loop.do(call.tell_first if call.role is Role.PREFILL else lambda: call.write(count))

    @precondition(lambda self: any(call.live for call in self.calls))
    @rule(pick=PICKS, error=st.sampled_from(ERRORS))
    def break_down(self, pick: int, error: BatonError | None) -> None:
        call = self._live()[pick % len(self._live())]
        self.loop.do(lambda: call.break_down(error))

    @precondition(lambda self: any(call.live for call in self.calls))
    @rule(pick=PICKS)
    def fall_silent(self, pick: int) -> None:
        """Let the watch notice that a worker says nothing; its calls stand."""
        call = self._live()[pick % len(self._live())]

        def silent() -> None:
            for give_up in list(call.worker.on_silence):
                give_up("it was silent")

        self.loop.do(silent)

    @precondition(lambda self: any(call.cancelled for call in self.calls))
    @rule(pick=PICKS)
    def speak_again(self, pick: int) -> None:
        """Let a worker speak whose call the router has cancelled: it was stopped, and did not hear of it."""
        zombies = [call for call in self.calls if call.cancelled]
        self.loop.do(zombies[pick % len(zombies)].write_poison)

    @rule(split=st.booleans(), rebinds=st.booleans())
    def place_what_comes_next(self, split: bool, rebinds: bool) -> None:
        """Say how the next attempt is placed, and whether a failed decode leg finds another worker."""
        self.placer.split, self.placer.rebinds = split, rebinds

    @precondition(lambda self: not self.serving.done())
    @rule()
    def leave(self) -> None:
        self.loop.do(self.serving.cancel)

    @invariant()
    def the_client_has_a_beginning_of_the_answer(self) -> None:
        if hasattr(self, "loop"):
            assert self.told == self.whole[: len(self.told)]
            if self.serving.done() and not self.serving.cancelled():
                self.serving.result()

    @invariant()
    def only_the_newest_attempt_is_at_work(self) -> None:
        if hasattr(self, "loop") and self.calls:
            newest = max(call.order.attempt for call in self.calls)
            assert all(call.order.attempt == newest for call in self._live()), (
                "a call was abandoned: an older attempt goes on"
            )
            assert sum(call.role is Role.DECODE for call in self._live()) <= 1, "a call was abandoned: two write on"

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            while not self.serving.done() and self._live():
                self._go_on(self._live()[0], 3)
            self.loop.advance(END_S)
            assert self.serving.done(), "a request did not end"
            assert self.serving.cancelled() or self.outcome, "a request ended without a word"
            assert not self._live(), "a call was abandoned"
            assert not self.placer.ledger
            assert not any(call.worker.on_silence for call in self.calls)
        finally:
            self.loop.shut()

    def _live(self) -> list[Call]:
        return [call for call in self.calls if call.live]
