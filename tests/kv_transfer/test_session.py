"""The two machines alone: every pair of state and event, and every order of messages."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.blocks import BlockReference
from cluster_core.errors import ExportGone, TransferFailed
from cluster_core.handoff import (
    AcceptBlocks,
    BlocksSealed,
    ExportFailed,
    ExportFinished,
    ExportOpened,
    OpenExport,
    PullBlocks,
    RejectBlocks,
)
from cluster_core.identity import Incarnation, WorkerId
from kv_transfer.export_session import ExporterSession, ExporterState
from kv_transfer.import_session import Expectation, ImporterSession, ImporterState
from kv_transfer.session import (
    Answer,
    BlockLanded,
    BlocksFilled,
    BlocksReady,
    Complete,
    ExporterEvent,
    GiveUp,
    ImporterEvent,
    ImporterLeft,
    LeaseExpired,
    PostReceives,
    PrefillFailed,
    PrefillFinished,
    ReleaseLease,
    Say,
    SendBlocks,
)
from tests.kv_transfer.fake_pool import ATTEMPT, LAYOUT, REQUEST, FakePool, hashes_of, references_of, sealed_blocks

TOKENS = 60
REFERENCES = references_of(FakePool(8), sealed_blocks(TOKENS))
OPENED = ExportOpened(lease_s=1.0, exporter_transport_address=b"address")
OPENING = OpenExport(
    request_id=REQUEST,
    attempt=ATTEMPT,
    exporter_incarnation=Incarnation(1),
    importer=WorkerId("decode-0"),
    importer_incarnation=Incarnation(2),
    importer_transport_address=b"address",
    layout=LAYOUT.describe(),
)
IMPORTER_EVENTS: dict[type, Any] = {
    ExportOpened: OPENED,
    BlocksSealed: BlocksSealed(blocks=(REFERENCES[2],)),
    ExportFinished: ExportFinished(first_token_id=3),
    ExportFailed: ExportFailed(reason="gone"),
    BlockLanded: BlockLanded(position=0, digest=REFERENCES[0].digest),
}
EXPORTER_EVENTS: dict[type, Any] = {
    OpenExport: OPENING,
    PullBlocks: PullBlocks(tag=1, positions=(0,)),
    AcceptBlocks: AcceptBlocks(),
    RejectBlocks: RejectBlocks(reason="wrong", positions=(0,)),
    BlocksFilled: BlocksFilled(blocks=(REFERENCES[2],)),
    BlocksReady: BlocksReady(blocks=(REFERENCES[2],)),
    PrefillFinished: PrefillFinished(first_token_id=3),
    PrefillFailed: PrefillFailed(reason="cancelled"),
    ImporterLeft: ImporterLeft(),
    LeaseExpired: LeaseExpired(),
}


def importer(blocks_in_flight: int = 64, kept: frozenset[int] = frozenset()) -> ImporterSession:
    expected = Expectation(
        blocks=LAYOUT.blocks_for(TOKENS),
        kept=kept,
        hashes=hashes_of(TOKENS),
        block_size_tokens=LAYOUT.block_size_tokens,
        blocks_in_flight=blocks_in_flight,
    )
    return ImporterSession(expected, itertools.count(0, 100).__next__)


def importer_in(state: ImporterState) -> ImporterSession:
    session = importer()
    if state is not ImporterState.OPENING:
        session.handle(OPENED)
        session.handle(BlocksSealed(blocks=tuple(REFERENCES[:1])))
    session.state = state
    return session


def exporter_in(state: ExporterState) -> ExporterSession:
    session = ExporterSession(1.0, b"address")
    session.handle(BlocksReady(blocks=tuple(REFERENCES[:2])))
    session.state = state
    return session


def members(union: Any) -> set[type]:
    return {one for member in get_args(union) for one in (get_args(member) or (member,))}


def test_the_tables_speak_of_every_event() -> None:
    assert members(ImporterEvent) == set(IMPORTER_EVENTS)
    assert members(ExporterEvent) == set(EXPORTER_EVENTS)
    assert {event for _, event in ImporterSession.TABLE} == set(IMPORTER_EVENTS)
    assert {event for _, event in ExporterSession.TABLE} == set(EXPORTER_EVENTS)


@pytest.mark.parametrize("event", IMPORTER_EVENTS.values(), ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", ImporterState, ids=lambda state: str(state.value))
def test_importer_takes_what_is_in_the_table_and_nothing_else(state: ImporterState, event: Any) -> None:
    session = importer_in(state)
    if (state, type(event)) in ImporterSession.TABLE:
        session.handle(event)
    else:
        with pytest.raises(TransferFailed, match="has no place"):
            session.handle(event)
        assert session.state is state


@pytest.mark.parametrize("event", EXPORTER_EVENTS.values(), ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("state", ExporterState, ids=lambda state: str(state.value))
def test_exporter_takes_what_is_in_the_table_and_nothing_else(state: ExporterState, event: Any) -> None:
    session = exporter_in(state)
    if (state, type(event)) in ExporterSession.TABLE:
        session.handle(event)
    else:
        with pytest.raises(TransferFailed, match="has no place"):
            session.handle(event)
        assert session.state is state


def test_every_end_of_an_export_gives_the_lease_back_once() -> None:
    ends = (PrefillFailed, AcceptBlocks, RejectBlocks, LeaseExpired)
    for state, kind in ExporterSession.TABLE:
        live = state not in {ExporterState.ACCEPTED, ExporterState.ENDED}
        released = ReleaseLease() in exporter_in(state).handle(EXPORTER_EVENTS[kind])
        assert released == (live and kind in ends)


def test_a_pull_of_what_the_prompt_does_not_have_is_refused() -> None:
    for positions in ((5,), (0, 2), ()):
        with pytest.raises(TransferFailed, match="asked for"):
            exporter_in(ExporterState.SERVING).handle(PullBlocks(tag=1, positions=positions))
    session = ExporterSession(1.0, b"address")
    session.handle(OPENING)
    assert session.handle(PullBlocks(tag=1, positions=(0, 4))) == []
    session.handle(BlocksReady(blocks=tuple(REFERENCES)))
    answer, release = session.handle(PrefillFinished(first_token_id=3))
    assert isinstance(answer, Answer)
    assert isinstance(answer.message, ExportFailed)
    assert "[4]" in answer.message.reason
    assert isinstance(release, ReleaseLease)
    assert session.over


def test_what_was_pulled_before_it_was_sealed_is_sent_as_soon_as_it_is() -> None:
    session = ExporterSession(1.0, b"address")
    session.handle(BlocksReady(blocks=tuple(REFERENCES[:1])))
    session.handle(OPENING)
    assert session.handle(PullBlocks(tag=10, positions=(0, 2))) == [SendBlocks(tag=10, numbered=((0, REFERENCES[0]),))]
    assert session.handle(PullBlocks(tag=20, positions=(1, 3))) == []
    first = tuple(REFERENCES[1:3])
    assert session.handle(BlocksReady(blocks=first)) == [
        Answer(message=BlocksSealed(blocks=first)),
        SendBlocks(tag=20, numbered=((0, REFERENCES[1]),)),
        SendBlocks(tag=10, numbered=((1, REFERENCES[2]),)),
    ]
    session.handle(ImporterLeft())
    assert session.handle(OPENING)[1:] == [Answer(message=BlocksSealed(blocks=tuple(REFERENCES[:3])))]
    last = tuple(REFERENCES[3:])
    assert session.handle(BlocksReady(blocks=last)) == [Answer(message=BlocksSealed(blocks=last))], "pulled by another"


def test_everything_is_pulled_at_once_and_what_has_no_room_in_halves() -> None:
    session = importer(blocks_in_flight=2, kept=frozenset({1}))
    _, pull = session.handle(OPENED)
    assert pull == Say(message=PullBlocks(tag=0, positions=(0, 2)))
    session.handle(BlocksSealed(blocks=tuple(REFERENCES)))
    _, pull = session.handle(BlockLanded(position=2, digest=REFERENCES[2].digest))
    assert pull == Say(message=PullBlocks(tag=100, positions=(3,)))


def test_who_comes_late_hears_everything() -> None:
    session = ExporterSession(2.5, b"here")
    session.handle(BlocksReady(blocks=tuple(REFERENCES[:2])))
    session.handle(BlocksReady(blocks=tuple(REFERENCES[2:])))
    session.handle(PrefillFinished(first_token_id=9))
    assert session.handle(OPENING) == [
        Answer(message=ExportOpened(lease_s=2.5, exporter_transport_address=b"here")),
        Answer(message=BlocksSealed(blocks=tuple(REFERENCES))),
        Answer(message=ExportFinished(first_token_id=9)),
    ]


def test_a_full_hit_pulls_nothing() -> None:
    session = importer(kept=frozenset(range(4)))
    session.handle(OPENED)
    assert session.handle(BlocksSealed(blocks=tuple(REFERENCES))) == []
    assert session.handle(ExportFinished(first_token_id=8)) == [
        Complete(first_token_id=8),
        Say(message=AcceptBlocks()),
    ]


def test_a_refusal_of_the_exporter_is_passed_on() -> None:
    actions = importer().handle(ExportFailed(reason="restarted"))
    assert [str(action.error) for action in actions if isinstance(action, GiveUp)] == ["restarted"]
    assert all(isinstance(action.error, ExportGone) for action in actions if isinstance(action, GiveUp))


SPOILERS: dict[str, Callable[[BlockReference], BlockReference]] = {
    "hash": lambda block: replace(block, hash=None if block.hash else hashes_of(16)[0]),
    "short digest": lambda block: replace(block, digest=block.digest[:15]),
    "no digest": lambda block: replace(block, digest=b""),
    "no tokens": lambda block: replace(block, tokens=0),
    "too many tokens": lambda block: replace(block, tokens=17),
    "position": lambda block: replace(block, position=4),
    "negative position": lambda block: replace(block, position=-1),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda block: f"block {block.position}")
def test_a_reference_that_cannot_be_right_is_rejected(
    reference: BlockReference, spoil: Callable[[BlockReference], BlockReference]
) -> None:
    session = importer()
    session.handle(OPENED)
    reject, give_up = session.handle(BlocksSealed(blocks=(spoil(reference),)))
    assert isinstance(reject, Say)
    assert isinstance(reject.message, RejectBlocks)
    assert isinstance(give_up, GiveUp)
    assert session.state is ImporterState.REFUSED


@dataclass
class Exchange:
    """Plays the exporter and the transport against an importer's machine, in an order that is drawn.

    Messages keep their order; bytes land whenever they like, also before it is said that they were sealed.
    """

    session: ImporterSession
    kept: frozenset[int]
    to_seal: list[BlockReference] = field(default_factory=lambda: list(REFERENCES))
    pulls: dict[int, tuple[int, ...]] = field(default_factory=dict)
    landing: list[BlockLanded] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)
    heard: list[BlocksSealed] = field(default_factory=list)
    finished: bool = False
    wrong: bool = False
    ended: list[Any] = field(default_factory=list)

    def feed(self, event: Any) -> None:
        for action in self.session.handle(event):
            match action:
                case PostReceives(tag=tag, positions=positions):
                    self.pulls[tag] = positions
                    self.send([one for one in REFERENCES if one not in self.to_seal])
                case Complete() | GiveUp():
                    self.ended.append(action)
                case _:
                    pass

    def send(self, sealed: list[BlockReference]) -> None:
        """Send what was pulled of ``sealed``."""
        for tag, positions in self.pulls.items():
            blocks = tuple(one for one in sealed if one.position in positions)
            self.pulls[tag] = tuple(one for one in positions if one not in {block.position for block in blocks})
            self.landing += [BlockLanded(position=one.position, digest=one.digest) for one in blocks]

    def moves(self) -> list[Callable[[int], None]]:
        """Return what can happen next in a hand-over where nothing goes wrong."""
        moves: list[Callable[[int], None]] = [self.land] * bool(self.landing)
        moves += [self.hear] * bool(self.said) + [self.hear_again] * bool(self.heard)
        if not self.finished:
            moves += [self.seal if self.to_seal else self.finish]
        return moves

    def harms(self) -> list[Callable[[int], None]]:
        """Return what can go wrong next."""
        harms: list[Callable[[int], None]] = [self.land_wrong] * bool(self.landing)
        early = not self.finished and any(one.position not in self.kept for one in self.to_seal)
        return harms + [self.finish] * early

    def seal(self, draw: int) -> None:
        count = 1 + draw % len(self.to_seal)
        blocks, self.to_seal = self.to_seal[:count], self.to_seal[count:]
        self.said.append(BlocksSealed(blocks=tuple(blocks)))
        self.send(blocks)

    def hear(self, _draw: int) -> None:
        message = self.said.pop(0)
        self.heard += [message] * isinstance(message, BlocksSealed)
        self.feed(message)

    def hear_again(self, draw: int) -> None:
        if self.session.state is not ImporterState.COMPLETING:
            self.feed(self.heard[draw % len(self.heard)])

    def land(self, draw: int) -> None:
        self.feed(self.landing.pop(draw % len(self.landing)))

    def finish(self, _draw: int) -> None:
        self.finished = True
        self.said.append(ExportFinished(first_token_id=1))

    def land_wrong(self, _draw: int) -> None:
        self.feed(replace(self.landing.pop(), digest=b"x" * 16))


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    """Return an exchange that was played to its end."""
    kept = draw(st.frozensets(st.integers(0, 3)))
    exchange = Exchange(importer(draw(st.integers(1, 4)), kept), kept)
    exchange.feed(OPENED)
    while not exchange.ended and (moves := exchange.moves()):
        harms = [] if exchange.wrong else exchange.harms()
        harm = bool(harms) and draw(st.integers(0, 9)) == 0
        exchange.wrong |= harm
        draw(st.sampled_from(harms if harm else moves))(draw(st.integers(0, 100)))
    return exchange


@settings(deadline=None, derandomize=True)
@given(exchanges())
def test_in_any_order_right_blocks_are_accepted_and_wrong_ones_never(exchange: Exchange) -> None:
    assert len(exchange.ended) == 1
    assert isinstance(exchange.ended[0], GiveUp if exchange.wrong else Complete)
    if not exchange.wrong:
        assert not exchange.landing
        assert not exchange.said


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(list(EXPORTER_EVENTS.values())), max_size=12))
def test_no_order_of_events_makes_an_exporter_release_twice_or_answer_nobody(events: list[Any]) -> None:
    session, listening, released = ExporterSession(1.0, b"address"), False, 0
    sealed = False
    for event in events:
        if isinstance(event, BlocksReady) and sealed:
            continue
        try:
            actions = session.handle(event)
        except TransferFailed:
            continue
        sealed = sealed or isinstance(event, BlocksReady)
        listening = listening or isinstance(event, OpenExport)
        listening = listening and not isinstance(event, ImporterLeft)
        for action in actions:
            assert listening or not isinstance(action, Answer | SendBlocks)
            released += isinstance(action, ReleaseLease)
    assert released == session.over
