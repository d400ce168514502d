"""What one answer computes in a step."""

from dataclasses import dataclass, field

from decode_worker.answer import Answer
from inference_engine.speculation_control import Offer
from inference_engine.step import SequenceSlice


@dataclass(slots=True, eq=False, kw_only=True)
class StepShare:
    """Some of the answer's tokens, and how many guesses of what follows them are checked."""

    answer: Answer
    count: int
    guesses: tuple[int, ...] = ()
    """Those that are known when the step is planned. A draft model makes them in the step."""
    guessed: int = 0
    """How many are checked, wherever they come from."""
    offer: Offer | None = None
    """What was offered of which these guesses are; None where nothing was."""
    writes: bool = field(init=False)
    """Whether the step is for the answer's next token alone, not to read a prompt."""

    def __post_init__(self) -> None:
        answer = self.answer
        self.writes = answer.sequence.pending == 1 and not answer.tells_prompt and not answer.fork_seeds

    def slice(self) -> SequenceSlice:
        """Return the share as the engine takes it."""
        sequence, sampling = self.answer.sequence, self.answer.order.sampling
        start, end = sequence.computed, sequence.computed + self.count
        last = self.count == sequence.pending
        tells = self.answer.tells_prompt
        return SequenceSlice(
            token_ids=[*sequence.token_ids[start:end], *self.guesses],
            start=start,
            block_table=sequence.block_table,  # not changed while a step uses it
            draw=sampling if last else None,
            drafted=len(self.guesses),
            before=sequence.token_ids[:start] if last and not sampling.plain and sampling.looks_back else (),
            prompt_logprobs=sampling.prompt_logprobs if tells else None,
            following=sequence.token_ids[end] if tells and not last else None,
            forks=self.answer.fork_seeds if last else (),
        )
