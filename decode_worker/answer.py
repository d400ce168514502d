"""One answer on its way through a decode worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from cluster_core.handoff import FetchReport
from cluster_core.logprobs import TokenLogprobs
from cluster_core.sampling import choice_seed
from cluster_rpc.worker_messages import WorkOrder
from decode_worker.answer_stream import AnswerStream, FinishReason, TokensWritten
from inference_engine.borrowed_prefixes import Borrowing
from inference_engine.sequence import TokenSequence


class Stage(Enum):
    """Where an answer is.

    ::

        WAITING --> IMPORTING --> RUNNING --> ENDED        with an origin
        WAITING ----------------> RUNNING --> ENDED        read here
        WAITING --> FETCHING --> WAITING                   read here; another worker's cache has more of it
        IMPORTING --> WAITING                              called back: read here from then on
                     RUNNING --> WAITING                   preempted: read here from then on
        every stage -------------------------> ENDED       cancelled or failed
    """

    WAITING = auto()
    FETCHING = auto()
    IMPORTING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Answer:
    """The state of one answer; the scheduler owns it."""

    order: WorkOrder
    sequence: TokenSequence
    stream: AnswerStream
    arrival: int
    """Its place in the order of arrival. The lower one is the older."""
    arrived_s: float
    choice: int = 0
    """Which of the answers to its order. The others begin as forks of the first, when the prompt has been read."""
    stage: Stage = Stage.WAITING
    started: bool = False
    written: int = 0
    """Tokens of the answer so far, the prefill worker's among them."""
    blocked_since_s: float | None = None
    """Since when it waits for blocks at the head of the queue."""
    paused_since_s: float | None = None
    """Since when its reader has not kept up."""
    borrowing: Borrowing | None = None
    """While it is fetching."""
    has_fetched: bool = False
    """Whether a fetch for it has been tried."""
    fetch: FetchReport | None = None
    import_began_s: float = 0.0
    unwanted: frozenset[int] = frozenset()
    """Choices of which the reader had enough before they began: each ends with its first token."""
    read_here: bool = False
    """Its import was called back, or came too late: the prompt is read here, although a prefill worker reads it too."""

    @property
    def to_import(self) -> bool:
        """Its blocks are still to come from a prefill worker."""
        return self.order.origin is not None and self.written == 0 and not self.read_here

    @property
    def may_fetch(self) -> bool:
        """Whether its beginning may still be fetched: where it is read here, for the first time."""
        return self.order.origin is None and self.written == 0 and not self.has_fetched and not self.tells_prompt

    def leave_out(self, choice: int) -> bool:
        """End ``choice`` with its first token, since nobody wants more of it; False where that has been written.

        Until then this answer reads or imports for all that it will be forked into: it must not end before.
        """
        if self.written or choice >= self.order.choices:
            return False
        self.unwanted |= {choice}
        return True

    @property
    def fork_seeds(self) -> tuple[int, ...]:
        """The seeds of the other answers to its order, whose first tokens are drawn with its own."""
        if self.written:
            return ()
        return tuple(choice_seed(self.order.sampling.seed, choice) for choice in range(1, self.order.choices))

    @property
    def tells_prompt(self) -> bool:
        """The prompt's logprobs are still to be told from here: they come of computing it, not of cached blocks."""
        asked = self.order.sampling.prompt_logprobs is not None
        return asked and self.order.origin is None and self.written == 0

    def is_paused(self, now_s: float) -> bool:
        """Whether its reader has not kept up; notes since when."""
        if not self.stream.full:
            self.paused_since_s = None
        elif self.paused_since_s is None:
            self.paused_since_s = now_s
        return self.stream.full

    def paused_s(self, now_s: float) -> float:
        """Return for how long its reader has not kept up; 0.0 where it does."""
        since_s = self.paused_since_s if self.is_paused(now_s) else None
        return 0.0 if since_s is None else now_s - since_s

    @property
    def left(self) -> int:
        """How many tokens it may still write."""
        return self.order.sampling.max_tokens - self.written

    def write(self, token_ids: Sequence[int], logprobs: tuple[TokenLogprobs, ...] = ()) -> FinishReason | None:
        """Append tokens that were drawn here, tell the reader, and say whether the answer is complete.

        Where there is a prefill worker, the answer's first token is for it to tell. If the prompt was read here all the
        same, both tell it: the reader then notices if they disagree.
        """
        if token_ids and (self.written or self.order.origin is None or self.read_here):
            event = TokensWritten(
                offset=self.written, token_ids=tuple(token_ids), logprobs=logprobs, choice=self.choice
            )
            self.stream.put(event)
        return self.take_over(token_ids)

    def take_over(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Append tokens that the reader knows already, and say whether the answer is complete.

        At most as many as are `left`, and only the last may end the answer. All but the last have been computed: they
        were guessed.
        """
        if not token_ids:
            return None
        for token_id in token_ids:
            self.sequence.append(token_id)
        self.sequence.advance(len(token_ids) - 1)
        self.written += len(token_ids)
        if token_ids[-1] in self.order.sampling.stop_token_ids or self.choice in self.unwanted:
            return "stop"
        return None if self.left else "length"
