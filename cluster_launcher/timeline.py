"""A request's stages as bars on one time axis. Knows nothing of requests: named spans in, text out."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")
_COLOURS = {"queue": "yellow", "prefill": "cyan", "transfer": "magenta", "decode": "green"}
_OTHER_COLOUR = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSpan:
    """One stage, in seconds since the request's arrival."""

    name: str
    start_s: float
    end_s: float


def draw_timeline(spans: Sequence[TimelineSpan], width: int = 60, name_width: int = 0) -> list[Text]:
    """Return one line a span: name, bar at its place, start and duration. No spans, no lines.

    ``width`` is the number of characters of the axis, ``name_width`` the least of a name. Bars are drawn in eighths of
    a character, never shorter than one eighth, so that a stage of microseconds can still be seen.
    """
    if not spans:
        return []
    end_s = max(span.end_s for span in spans)
    scale = width * 8 / end_s if end_s > 0 else 0.0
    name_width = max(name_width, *(len(span.name) for span in spans))
    lines = []
    for span in spans:
        start = min(int(span.start_s * scale), width * 8 - 1)
        stop = max(min(round(span.end_s * scale), width * 8), start + 1)
        line = Text(f"{span.name:<{name_width}} ")
        line.append("│", style="dim")
        line.append(_bar(start, stop, width), style=_COLOURS.get(span.name, _OTHER_COLOUR))
        line.append("│", style="dim")
        line.append(f" {duration(span.start_s):>8} + {duration(span.end_s - span.start_s):>8}", style="dim")
        lines.append(line)
    return lines


def duration(seconds: float) -> str:
    """Return a duration at three significant digits with its unit: ``1.25 s``, ``87.4 ms``, ``340 µs``."""
    if seconds == 0:
        return "0 s"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        value = seconds * factor
        if value >= 0.9995 or unit == "µs":
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError(seconds)


def _bar(start: int, stop: int, width: int) -> str:
    """Draw from eighth ``start`` to ``stop`` of ``width`` characters; the left edge falls on a whole character."""
    first = start // 8
    full, rest = divmod(stop - first * 8, 8)
    bar = " " * first + "█" * full + _EIGHTHS[rest]
    return f"{bar:<{width}}"[:width]
