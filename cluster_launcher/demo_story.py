"""What the demo asks: four prompts that a prefix cache treats in four ways."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_TOKENS = 48

_OPENING = '''import os


def read_lines(path):
    """Return the lines of a text file."""
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def write_lines(path, lines):
    """Write lines to a text file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("\\n".join(lines))


def count_words(text):
    """Return how often each word occurs."""
'''

_LONGER = '''    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def find_files(folder, suffix):
    """Yield the paths of all files below folder whose names end with suffix."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
'''

_SECOND_TURN = '''


class Reader:
    """Reads a file line by line."""

    def __init__(self, path):
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One request of the demo."""

    title: str
    what_to_see: str
    prompt: str


def scene(number: int, answers: Sequence[str]) -> Scene:
    """Return scene ``number`` of `SCENES`; the last one continues the first one's answer."""
    match number:
        case 0:
            return Scene(
                title="a prompt",
                what_to_see="nothing is cached: its blocks are computed, and handed over while they are",
                prompt=_OPENING,
            )
        case 1:
            return Scene(
                title="the same prompt again",
                what_to_see="its blocks are found; only what a decode worker lacks is moved",
                prompt=_OPENING,
            )
        case 2:
            return Scene(
                title="a longer prompt with a shared prefix",
                what_to_see="the shared blocks are found, the rest is computed",
                prompt=_OPENING + _LONGER,
            )
        case _:
            return Scene(
                title="the second turn of the first conversation",
                what_to_see=(
                    "the decode worker that wrote the first answer still has its blocks: the pair with it has the most "
                    "cached and the least to move"
                ),
                prompt=_OPENING + answers[0] + _SECOND_TURN,
            )


SCENES = 4
