"""What becomes of an import that failed, and of the blocks that it had brought.

Blocks that had arrived, and whose digest was the one that their exporter sealed, are as good as computed ones: the next
attempt, here, needs only the rest. The leading run of them goes into the cache; what comes after a gap could not be
found there, since a look-up ends at it.
"""

from collections.abc import Collection

from cluster_core.errors import BatonError, ExportGone
from decode_worker.answer import Answer
from inference_engine.sequence import TokenSequence


def keep_verified(sequence: TokenSequence, verified: Collection[int]) -> int:
    """Seal the verified full blocks that follow what ``sequence`` had from the cache, before it gives its blocks back.

    Returns how many leading blocks of the sequence the cache holds then. It is 0 where the sequence has no beginning:
    every layer has a window, and what lies before them all was not even asked for.
    """
    size = sequence.block_size_tokens
    first = end = sequence.computed // size
    full = len(sequence.hashes())
    has_beginning = not sequence.dropped
    while end < full and end in verified:
        end += 1
    if end > first:
        sequence.advance((end - first) * size)
    return end if has_beginning else 0


def goes_on_here(answer: Answer, error: BatonError, passing_s: float) -> bool:
    """Say whether an answer whose import failed reads its prompt here, at its old place in the queue.

    It does when its import was called back; and when it had waited here for room for longer than ``passing_s``, and the
    exporter's lease did not last as long. Nobody failed then, and another attempt would begin to wait anew.
    """
    waited_s = answer.import_began_s - answer.arrived_s
    return answer.read_here or (isinstance(error, ExportGone) and waited_s >= passing_s)
