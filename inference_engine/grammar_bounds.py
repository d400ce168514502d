"""What a grammar may ask for, before the library that compiles it sees its text.

The library bounds nearly all of its own work. What it does not bound is refused here, by rules that look at the text
alone: intersections of regular expressions (compiling takes time exponential in their number) and ``multipleOf`` (an
automaton with as many states as the number has units).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from cluster_core.errors import InvalidField
from cluster_core.sampling import Grammar, GrammarKind

LARGEST_TEXT_BYTES = 64 * 1024
MOST_CHOICES = 4096
MOST_INTERSECTIONS = 8
MOST_RULES = 500
LARGEST_MULTIPLE = 20_000

_FIELDS = {
    GrammarKind.JSON_SCHEMA: "sampling_params.json_schema",
    GrammarKind.REGEX: "sampling_params.regex",
    GrammarKind.LARK: "sampling_params.grammar",
    GrammarKind.CHOICE: "sampling_params.choice",
}
_EMBEDDED = ("%json", "%regex", "%llguidance", "%lark")
_MERGING = frozenset({"allOf", "anyOf", "oneOf", "$ref"})
"""Keywords whose value is intersected with what stands beside them."""
_PLAIN = frozenset(
    {"$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "examples"}
    | {"discriminator", "readOnly", "title", "type", "writeOnly", "x-guidance"}
)
"""Keywords that add no regular expression to what stands beside them."""


def refuse(grammar: Grammar, reason: str) -> InvalidField:
    """Return the error to raise, which names the request's field."""
    return InvalidField(_FIELDS[grammar.kind], reason)


def check_bounds(grammar: Grammar) -> None:
    """Raise `InvalidField` for a text that is too long, is not what its kind says, or asks for too much."""
    size = len(grammar.text.encode(errors="replace"))
    if size > LARGEST_TEXT_BYTES:
        raise refuse(grammar, f"is {size} bytes long: send at most {LARGEST_TEXT_BYTES}")
    if not grammar.text.strip():
        raise refuse(grammar, "is empty: say what the answer must match")
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            _check_schema(grammar)
        case GrammarKind.LARK:
            _check_lark(grammar)
        case GrammarKind.CHOICE:
            choices_of(grammar)
        case GrammarKind.REGEX:
            pass


def choices_of(grammar: Grammar) -> list[str]:
    """Return the strings of a choice, each once. Raises `InvalidField` where there are none, or other things."""
    found = _parsed(grammar)
    if not isinstance(found, list) or not all(isinstance(choice, str) for choice in found):
        raise refuse(grammar, "is not a list of strings: send the strings that the answer may be")
    if not found or "" in found:
        raise refuse(grammar, "is empty or holds an empty string: send at least one string, each with a character")
    if len(found) > MOST_CHOICES:
        raise refuse(grammar, f"has {len(found)} strings: send at most {MOST_CHOICES}")
    if any(0xD800 <= ord(character) <= 0xDFFF for choice in found for character in choice):
        raise refuse(grammar, "holds half of a surrogate pair: send whole characters")
    return list(dict.fromkeys(found))


def _check_lark(grammar: Grammar) -> None:
    text = grammar.text
    embedded = next((word for word in _EMBEDDED if word in text), None)
    if embedded is not None:
        raise refuse(grammar, f"uses {embedded}, which is not supported: write rules, or send the field made for it")
    operators = text.count("&") + text.count("~")
    if operators > MOST_INTERSECTIONS:
        raise refuse(grammar, f"has {operators} of the signs & and ~: use at most {MOST_INTERSECTIONS}")
    rules = text.count(":")
    if rules > MOST_RULES:
        raise refuse(grammar, f"has {rules} colons: use at most {MOST_RULES}, which bounds the number of rules")


@dataclass(slots=True)
class _Seen:
    """What a walk over a schema found."""

    expressions: set[str] = field(default_factory=set)
    multiples: list[Decimal] = field(default_factory=list)
    merges: bool = False


def _check_schema(grammar: Grammar) -> None:
    schema = _parsed(grammar)
    if not isinstance(schema, dict):
        raise refuse(grammar, 'is not a JSON object: send a schema such as {"type": "object"}')
    seen = _Seen()
    for part in _objects(schema):
        _look_at(part, seen)
    if seen.merges and len(seen.expressions) > MOST_INTERSECTIONS:
        reason = (
            f"combines schemas (allOf, or $ref, anyOf, oneOf beside other keywords) that hold {len(seen.expressions)} "
            f"patterns and formats: at most {MOST_INTERSECTIONS} may be combined"
        )
        raise refuse(grammar, reason)
    if not all(Decimal("1e-9") <= value <= LARGEST_MULTIPLE for value in seen.multiples):
        raise refuse(grammar, f"has a multipleOf that is no number from 1e-9 to {LARGEST_MULTIPLE}")
    scale = max((-int(value.normalize().as_tuple().exponent) for value in seen.multiples), default=0)
    if scale > 9 or math.lcm(*(int(value.scaleb(max(0, scale))) for value in seen.multiples)) > LARGEST_MULTIPLE:
        reason = f"has multipleOf whose common multiple is above {LARGEST_MULTIPLE} units of the last digit"
        raise refuse(grammar, reason)


def _look_at(part: dict[str, object], seen: _Seen) -> None:
    for key in ("pattern", "format"):
        value = part.get(key)
        if isinstance(value, str):
            seen.expressions.add(f"{key} {value}")
    multiple = part.get("multipleOf")
    if isinstance(multiple, int | Decimal) and not isinstance(multiple, bool):
        seen.multiples.append(Decimal(multiple))
    merging = _MERGING & part.keys()
    members = part.get("allOf")
    seen.merges |= isinstance(members, list) and len(members) > 1
    seen.merges |= bool(merging) and bool(part.keys() - _PLAIN - merging or len(merging) > 1)


def _objects(schema: object) -> Iterator[dict[str, object]]:
    """Go over all JSON objects in a schema, whatever they mean there."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _parsed(grammar: Grammar) -> object:
    try:
        found: object = json.loads(grammar.text, parse_float=Decimal)
    except (ValueError, RecursionError, ArithmeticError) as error:
        reason = f"is not JSON ({str(error)[:80]}): send valid JSON, nested less than 100 deep"
        raise refuse(grammar, reason) from None
    return found
