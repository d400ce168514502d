"""How a step's token budget is shared among the prompts that are being read."""

from collections.abc import Sequence


def share_budget(pending: Sequence[int], budget: int, chunk: int) -> list[int]:
    """Return how many tokens each prompt may compute in the next step; ``pending`` is in order of arrival.

    The oldest prompt may take half of the budget; the rest goes to the shortest remainders first. So a short prompt
    does not wait behind a long one, the long one always moves, and prompts of equal length are read one after another,
    which gives each its first token earliest. No prompt gets more than ``chunk`` tokens.
    """
    shares = [0] * len(pending)
    if not pending:
        return shares
    shares[0] = min(pending[0], chunk, max(1, budget // 2))
    left = budget - shares[0]
    for place in sorted(range(len(pending)), key=lambda place: pending[place]):
        more = min(pending[place] - shares[place], chunk - shares[place], left)
        shares[place] += more
        left -= more
    return shares
