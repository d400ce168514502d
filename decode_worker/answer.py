"""One answer on its way through a decode worker."""

from dataclasses import dataclass
from enum import Enum, auto

from cluster_rpc.worker_messages import WorkOrder
from decode_worker.answer_stream import AnswerStream, FinishReason, TokensWritten
from inference_engine.sequence import TokenSequence


class Stage(Enum):
    """Where an answer is.

    ::

        WAITING --> IMPORTING --> RUNNING --> ENDED        with an origin
        WAITING ----------------> RUNNING --> ENDED        read here
        IMPORTING --> WAITING                              called back: read here from then on
                     RUNNING --> WAITING                   preempted: read here from then on
        every stage -------------------------> ENDED       cancelled or failed
    """

    WAITING = auto()
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
    stage: Stage = Stage.WAITING
    started: bool = False
    written: int = 0
    """Tokens of the answer so far, the prefill worker's among them."""
    blocked_since_s: float | None = None
    """Since when it waits for blocks at the head of the queue."""
    paused_since_s: float | None = None
    """Since when its reader has not kept up."""
    import_began_s: float = 0.0
    read_here: bool = False
    """Its import was called back: the prompt is read here, although a prefill worker reads it too."""

    @property
    def to_import(self) -> bool:
        """Its blocks are still to come from a prefill worker."""
        return self.order.origin is not None and self.written == 0 and not self.read_here

    def write(self, token_id: int) -> FinishReason | None:
        """Append a token that was drawn here, tell the reader, and say whether the answer is complete.

        Where there is a prefill worker, the answer's first token is for it to tell. If the prompt was read here all the
        same, both tell it: the reader then notices if they disagree.
        """
        if self.written or self.order.origin is None or self.read_here:
            self.stream.put(TokensWritten(offset=self.written, token_ids=(token_id,)))
        return self.take_over(token_id)

    def take_over(self, token_id: int) -> FinishReason | None:
        """Append a token that the reader knows already, and say whether the answer is complete."""
        self.sequence.append(token_id)
        self.written += 1
        if token_id in self.order.sampling.stop_token_ids:
            return "stop"
        return "length" if self.written >= self.order.sampling.max_tokens else None
