"""How the tokens of a step are shared among the prompts that are being read."""

from collections.abc import Sequence


def share_budget(pending: Sequence[int], budget: int, chunk: int) -> list[int]:
    """Return how many tokens each prompt may compute in the next step; ``pending`` is in order of admission.

    The oldest prompt may take half of the budget; the rest goes to the shortest remainders first. So a short prompt
    does not wait behind a long one, the long one always moves, and prompts of equal length are read one after another,
    which gives each its first token earliest. No prompt gets more than ``chunk`` tokens.

    Whatever comes after it, a prompt is read within as many steps as it and all before it need with half a budget (or
    a chunk) each. And one of at most a chunk is read within the steps that the other half of the budget needs for what
    is no longer than it, however long the others are.
    """
    shares = [0] * len(pending)
    if not pending or budget < 1:
        return shares
    shares[0] = min(pending[0], chunk, max(1, budget // 2))
    left = budget - shares[0]
    for place in sorted(range(len(pending)), key=lambda place: pending[place]):
        more = min(pending[place] - shares[place], chunk - shares[place], left)
        shares[place] += more
        left -= more
    return shares
