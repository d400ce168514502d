"""One answer's log and what the client is told of it (failures I5, I6, I10, I13, I17).

Attempts begin, write, repeat themselves, skip, die, and go on writing as zombies after the next one has begun; a zombie
writes poison, so that nothing of it can pass unnoticed. The client is told at any moment, and may leave. The model is
the answer that one undisturbed worker would have written.
"""

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster_core.errors import LegFailed
from cluster_core.identity import Attempt
from cluster_core.sampling import Sampling
from router.answer_choice import AnswerChoice
from router.text_stream import TextDelta
from router.timeline import Timeline

STOP = 7
POISON = 1000
PICKS = st.integers(0, 5)


class WordText:
    """The text of token 12 is ``12 ``; a stop string is a token."""

    def __init__(self, stop: int | None) -> None:
        self._stop = stop

    def feed(self, token_ids: Sequence[int]) -> TextDelta:
        used = len(token_ids)
        stopped = self._stop in token_ids
        if self._stop is not None and stopped:
            used = list(token_ids).index(self._stop) + 1
        text = "".join(f"{token} " for token in token_ids[:used])
        return TextDelta(text=text, stopped_by=str(self._stop) if stopped else None, tokens_used=used)

    def finish(self) -> str:
        return ""


class TokenStreamMachine(RuleBasedStateMachine):
    """``whole`` is the answer; ``told`` is what the client has of it."""

    @initialize(
        answer=st.lists(st.integers(10, 40), min_size=1, max_size=10),
        ends_with=st.sampled_from(["length", "stop token", "stop string"]),
    )
    def start(self, answer: list[int], ends_with: str) -> None:
        self.whole = list(answer)
        stop_string = None
        if ends_with == "stop token":
            self.whole.append(STOP)
        if ends_with == "stop string":
            stop_string = answer[-1]
            self.whole = answer[: answer.index(stop_string) + 1]
        self.source = [*self.whole, *range(50, 60)]
        """What a worker would write that did not know where to stop."""
        self.reason = "length" if ends_with == "length" else "stop"
        most = len(self.whole) if ends_with == "length" else len(self.whole) + 5
        sampling = Sampling(
            temperature=0.0, top_p=1.0, top_k=0, seed=3, max_tokens=most, stop_token_ids=frozenset({STOP})
        )
        self.now_s = 0.0
        self.choice = AnswerChoice(0, sampling, WordText(stop_string), Timeline(lambda: self.now_s))
        self.starts: dict[Attempt, int] = {}
        self.told: list[int] = []
        self.text = ""
        self.terminals = 0
        self.received = 0
        self.left = False

    @precondition(lambda self: self.choice.log.finish_reason is None and not self.left)
    @rule()
    def begin_attempt(self) -> None:
        attempt = self.choice.log.begin_attempt()
        assert attempt == max(self.starts, default=0) + 1, "attempts are numbered"
        self.choice.timeline.begin_attempt()
        self.starts[attempt] = len(self.choice.log.tokens)

    @precondition(lambda self: self.starts)
    @rule(back=st.integers(0, 3), ahead=st.sampled_from([0, 0, 0, 0, 2]), count=st.integers(0, 4))
    def write(self, back: int, ahead: int, count: int) -> None:
        """Let the current attempt write on, ``back`` tokens again or leaving ``ahead`` out."""
        log = self.choice.log
        start = self.starts[log.attempt]
        place = max(start, min(len(log.tokens), len(self.source)) - back) + ahead
        before, complete = len(log.tokens), log.finish_reason is not None
        try:
            self._accept(log.attempt, place - start, self.source[place : place + count])
        except LegFailed:
            assert place > before, "what is in order was refused"
        else:
            assert complete or place <= before, "a gap was taken"

    @precondition(lambda self: len(self.starts) > 1)
    @rule(pick=PICKS, offset=st.integers(0, 8), count=st.integers(1, 4), right=st.booleans())
    def write_as_zombie(self, pick: int, offset: int, count: int, right: bool) -> None:
        """Let an older attempt speak: of what it had written, or poison."""
        zombies = list(self.starts)[:-1]
        attempt = zombies[pick % len(zombies)]
        place = self.starts[attempt] + offset
        tokens = self.source[place : place + count] if right else [POISON + n for n in range(count)]
        before = list(self.choice.log.tokens)
        try:
            taken = self._accept(attempt, offset, tokens)
        except LegFailed as error:
            message = "a zombie failed the attempt that took its place"
            raise AssertionError(message) from error
        assert not taken, "a zombie was heard"
        assert self.choice.log.tokens == before

    @precondition(lambda self: self.starts)
    @rule(back=st.integers(1, 3))
    def contradict(self, back: int) -> None:
        """Let the current attempt give a token again, and differently."""
        log = self.choice.log
        start = self.starts[log.attempt]
        place = len(log.tokens) - back
        if place < start or log.finish_reason is not None:
            return
        before = list(log.tokens)
        try:
            self._accept(log.attempt, place - start, [POISON])
        except LegFailed:
            assert log.tokens == before
        else:
            message = "a token was changed"
            raise AssertionError(message)

    def _accept(self, attempt: Attempt, offset: int, tokens: list[int]) -> list[int]:
        taken = self.choice.log.accept(attempt, offset, tokens)
        self.received += len(tokens)
        return taken

    @precondition(lambda self: not self.left)
    @rule()
    def tell(self) -> None:
        self.now_s += 0.01
        log = self.choice.log
        if self.terminals:
            assert self.choice.chunk() is None, "a chunk after the terminal message"
            return
        chunk = self.choice.chunk()
        if chunk is not None:
            assert chunk.token_index == len(self.told)
            self.told += chunk.token_ids
            self.text += chunk.text
        if log.finish_reason is not None:
            message = self.choice.complete(0.01)
            self.terminals += 1
            self.text += message.text
            assert self.told == self.whole, "an answer ended that is not whole"
            assert message.finish_reason == self.reason
            assert message.completion_tokens == len(self.told)
            assert self.text == "".join(f"{token} " for token in self.whole)

    @rule()
    def leave(self) -> None:
        """Let the client go away: nothing more is told, the workers do not know yet."""
        self.left = True

    @invariant()
    def the_client_has_a_beginning_of_the_answer(self) -> None:
        if not hasattr(self, "choice"):
            return
        log = self.choice.log
        assert self.told == self.whole[: len(self.told)]
        assert log.tokens == self.source[: len(log.tokens)]
        assert log.dropped_tokens + len(log.tokens) == self.received, "a token was lost or counted twice"
        assert log.remaining >= 0
        assert self.terminals <= 1

    def teardown(self) -> None:
        if not hasattr(self, "choice") or self.left:
            return
        while self.choice.log.finish_reason is None:
            self.begin_attempt()
            self.write(0, 0, 3)
            self.tell()
        self.tell()
        assert self.terminals == 1
