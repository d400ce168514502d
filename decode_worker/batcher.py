"""Which tokens the next step computes: one for every running answer, then chunks of the prompts read here."""

from collections.abc import Sequence


def plan_step(pending: Sequence[int], budget: int, chunk: int) -> list[int]:
    """Return how many tokens each request may compute in the next step; ``pending`` is in order of arrival.

    A request with one pending token is writing; it goes first, so that reading prompts never stops an answer. What is
    left of the budget goes to prompts in order of arrival, at most ``chunk`` tokens in all, which bounds how much a
    prompt can delay the answers beside it.
    """
    shares = [0] * len(pending)
    left = budget
    for place, tokens in enumerate(pending):
        if tokens == 1 and left:
            shares[place] = 1
            left -= 1
    left = min(left, chunk)
    for place, tokens in enumerate(pending):
        if tokens > 1:
            shares[place] = min(tokens, left)
            left -= shares[place]
    return shares
