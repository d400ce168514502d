"""Which tokens the next step computes: one for every running answer, then chunks of the prompts read here."""

from collections.abc import Sequence

from inference_engine.prompt_shares import share_budget


def plan_step(pending: Sequence[int], budget: int, chunk: int) -> list[int]:
    """Return how many tokens each request may compute in the next step; ``pending`` is in order of arrival.

    A request with one pending token is writing; it goes first, so that reading prompts never stops an answer. What is
    left of the budget goes to prompts, as `share_budget` shares it, at most ``chunk`` tokens in all, which bounds how
    much prompts can delay the answers beside them.
    """
    shares = [0] * len(pending)
    left = budget
    for place, tokens in enumerate(pending):
        if tokens == 1 and left:
            shares[place] = 1
            left -= 1
    prompts = [place for place, tokens in enumerate(pending) if tokens > 1]
    if not prompts:
        return shares
    parts = share_budget([pending[place] for place in prompts], min(left, chunk), chunk)
    for place, part in zip(prompts, parts, strict=True):
        shares[place] = part
    return shares
