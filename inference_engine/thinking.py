"""What must stand at a place of an answer whatever the logits say, and where its grammar begins.

Both follow from the tokens before the place, so nothing is remembered from one token to the next. Thinking is on from a
``start`` to the first ``end`` after it; a ``start`` meanwhile changes nothing, so an answer cannot gain time by
beginning again. With an empty ``start`` the answer itself begins with thinking, and thinks once.
"""

from collections.abc import Sequence

import numpy as np

from cluster_core.sampling import Sampling, ThinkingLimit
from inference_engine.row_arrays import Int64Array


def forced_token(sampling: Sampling, position: int, tokens: Int64Array) -> int | None:
    """Return the token that must stand at ``position``, if any; ``tokens`` are all before it where they matter."""
    written = position - sampling.answer_start
    if 0 <= written < len(sampling.forced_token_ids):
        return sampling.forced_token_ids[written]
    limit = sampling.thinking
    if limit is None:
        return None
    began = _thinking_since(limit, tokens, sampling.answer_start)
    if began is None or position - max(began, sampling.answer_start) < limit.max_tokens:
        return None
    return limit.end[_begun(limit.end, tokens[began:])]


def grammar_start(sampling: Sampling, tokens: Int64Array) -> int | None:
    """Return where the text that the grammar rules begins, None while what comes next is none of it.

    That is the answer's beginning, or, where the answer begins with limited thinking, the end of that.
    """
    answer_start = sampling.answer_start
    limit = sampling.thinking
    if limit is None or _thinking_since(limit, tokens[:answer_start], answer_start) is None:
        return answer_start
    ends = _places(limit.end, tokens[answer_start:])
    return None if len(ends) == 0 else answer_start + int(ends[0]) + len(limit.end)


def _thinking_since(limit: ThinkingLimit, tokens: Int64Array, answer_start: int) -> int | None:
    """Return the position after the ``start`` that began the thinking which is on, None where none is."""
    if not limit.start:
        ended = len(_places(limit.end, tokens[answer_start:])) > 0
        return None if ended else answer_start
    starts = _places(limit.start, tokens)
    if len(starts) == 0:
        return None
    ends = _places(limit.end, tokens)
    over = int(ends[-1]) + len(limit.end) if len(ends) else 0
    place = int(np.searchsorted(starts, over))
    return int(starts[place]) + len(limit.start) if place < len(starts) else None


def _places(wanted: Sequence[int], tokens: Int64Array) -> Int64Array:
    """Return where in ``tokens`` the wanted ones begin, in order."""
    places = np.flatnonzero(tokens == wanted[0])
    for offset, token in enumerate(wanted[1:], start=1):
        places = places[places + offset < len(tokens)]
        places = places[tokens[places + offset] == token]
    return places


def _begun(wanted: Sequence[int], tokens: Int64Array) -> int:
    """Return how many of the wanted tokens stand at the end of ``tokens`` already."""
    for count in range(min(len(wanted) - 1, len(tokens)), 0, -1):
        if tuple(tokens[-count:].tolist()) == tuple(wanted[:count]):
            return count
    return 0
