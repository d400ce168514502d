"""The draft model's side of the answers: which tokens it has seen of each, and in which blocks of its own pool.

Life of an answer's draft: nothing, until guesses of it are wanted; then the draft model *reads* what it has not seen,
a long prompt in chunks beside steps that go on without it, the beginning from its own cache where it has it; then it
*guesses* in each step that wants guesses. When the answer is preempted or ends, or when another answer needs the
blocks, they go back, to the draft model's cache at first.

What it computed for guesses that came true counts as computed; the rest is overwritten, being at the same places.
"""

from collections.abc import Sequence

from cluster_core.holds import RequestHold
from cluster_core.layout import KvLayout, ModelIdentity
from decode_worker.answer import Answer
from decode_worker.step_share import StepShare
from inference_engine.acceptance import GuessKind
from inference_engine.block_pool import BlockPool, NoFreeBlocks
from inference_engine.sequence import TokenSequence
from inference_engine.speculation_control import SpeculationControl
from inference_engine.step import DraftSlice


class DraftGuesses:
    """A `decode_worker.guess_source.GuessSource`. ``chunk_tokens``: most tokens read in a step beside the guesses."""

    def __init__(self, *, identity: ModelIdentity, layout: KvLayout, total_blocks: int, chunk_tokens: int) -> None:
        self.pool = BlockPool(total_blocks)
        self._max_context_tokens = identity.max_context_tokens
        self._layout = layout
        self._chunk_tokens = chunk_tokens
        self._drafts: dict[Answer, TokenSequence] = {}
        self._reading: dict[Answer, int] = {}
        """Tokens that the step which was planned last reads, by answer."""

    @property
    def held_blocks(self) -> int:
        """As `GuessSource`."""
        return self.pool.counts().held

    def offer(self, answer: Answer, most: int) -> tuple[GuessKind, int]:
        """As `GuessSource`: none while it still reads."""
        room = self._max_context_tokens - len(answer.sequence.token_ids)
        if answer not in self._drafts or self._draft_of(answer).pending > self._chunk_tokens:
            return GuessKind.DRAFT_MODEL, 0
        return GuessKind.DRAFT_MODEL, min(most, max(room, 0))

    def take(self, shares: Sequence[StepShare], control: SpeculationControl) -> tuple[DraftSlice, ...]:
        """As `GuessSource`; plans reading too, for answers that have no guesses because it has not read them."""
        self._reading.clear()
        slices = []
        for place, share in enumerate(shares):
            if share.guessed:
                slices += self._guess(place, share, shares)
        unread = [(place, share) for place, share in enumerate(shares) if share.offer and share.offer.to_come]
        if unread:
            slices += self._read(unread, control, batch=sum(share.writes for share in shares))
        return tuple(slices)

    def settle(self, share: StepShare, token_ids: Sequence[int]) -> None:
        """As `GuessSource`: what was read, and the guesses that came true but for the last, are computed now."""
        read = self._reading.get(share.answer)
        if read is None:
            return
        draft = self._drafts[share.answer]
        true = max(0, min(share.guessed, len(token_ids)) - 1)
        draft.token_ids += token_ids[:true]
        draft.advance(read + true)
        self.pool.drain_events()  # nobody is told what is cached here

    def give_back(self, answer: Answer) -> None:
        """As `GuessSource`."""
        draft = self._drafts.get(answer)
        if draft is not None:
            draft.give_back()

    def forget(self, answer: Answer) -> None:
        """As `GuessSource`."""
        self._drafts.pop(answer, None)

    def _guess(self, place: int, share: StepShare, shares: Sequence[StepShare]) -> list[DraftSlice]:
        draft = self._drafts[share.answer]
        while share.guessed and not self._reserve(draft, len(draft.token_ids) + share.guessed - 1, shares):
            share.guessed -= 1
        return [self._slice(place, share, draft.pending)] if share.guessed else []

    def _read(
        self, unread: Sequence[tuple[int, StepShare]], control: SpeculationControl, batch: int
    ) -> list[DraftSlice]:
        """Plan reading of answers that will be guessed for, where that promises to pay, in order of arrival."""
        gain = control.promised_gain(batch)
        left = self._chunk_tokens
        slices = []
        for place, share in unread:
            draft = self._draft_of(share.answer)
            if len(draft.token_ids) >= self._max_context_tokens:
                continue
            if not draft.computed:
                draft.attach_cached(len(draft.token_ids) - 1)
            count = min(draft.pending - 1, left)
            pays = count and control.may_catch_up(batch, gain, tokens=draft.pending, to_write=share.answer.left)
            if pays and self._reserve(draft, draft.computed + count):
                slices.append(self._slice(place, share, count))
                left -= count
        return slices

    def _slice(self, place: int, share: StepShare, count: int) -> DraftSlice:
        draft = self._drafts[share.answer]
        end = draft.computed + count
        self._reading[share.answer] = count
        looks_back = share.answer.order.sampling.looks_back
        return DraftSlice(
            place=place,
            token_ids=draft.token_ids[draft.computed : end],
            start=draft.computed,
            block_table=draft.block_table,
            guesses=share.guessed,
            before=draft.token_ids[: draft.computed] if looks_back and share.guessed else (),
        )

    def _reserve(self, draft: TokenSequence, tokens: int, shares: Sequence[StepShare] = ()) -> bool:
        """Reserve blocks, those of answers that ``shares`` does not guess for if need be; False where that fails."""
        try:
            draft.reserve(tokens)
        except NoFreeBlocks:
            guessing = {share.answer for share in shares if share.guessed}
            idle = [other for answer, other in self._drafts.items() if answer not in guessing and other.block_table]
            if not guessing or not idle:
                return False
            for other in idle:
                other.give_back()
            return self._reserve(draft, tokens)
        return True

    def _draft_of(self, answer: Answer) -> TokenSequence:
        draft = self._drafts.get(answer)
        if draft is None:
            order, layout = answer.order, self._layout
            draft = self._drafts[answer] = TokenSequence(
                pool=self.pool,
                hold=RequestHold(order.request_id, order.attempt, answer.arrival),
                root=order.root_hash,
                token_ids=answer.sequence.token_ids,
                block_size_tokens=layout.block_size_tokens,
                window_tokens=layout.window_tokens,
            )
        draft.token_ids += answer.sequence.token_ids[len(draft.token_ids) :]
        return draft
