"""The grammar that a client wants its answer to match: its size, of a JSON schema its shape, and whether it is one.

It is compiled here once, over bytes, so that a worker is never given one that cannot be compiled. That takes
milliseconds, seldom longer: `router.generation_service` reads such requests in a thread.
"""

import functools
import json

from cluster_core.sampling import Grammar, GrammarKind
from cluster_rpc.field_checks import refuse, require
from cluster_rpc.v1 import generation_pb2 as pb
from inference_engine.grammar import check_grammar
from router.validation import InputLimits

ANY_OBJECT = '{"type":"object"}'

_PREFIX = "sampling_params."


KNOWN_GRAMMARS = 256
"""Grammars that are remembered to be good."""

_check_once = functools.lru_cache(maxsize=KNOWN_GRAMMARS)(check_grammar)


def read_grammar(params: pb.SamplingParams, limits: InputLimits) -> Grammar | None:
    """Return the grammar; None where there is none. Raises `InvalidField`."""
    grammar = _bounded(params, limits)
    if grammar is not None:
        _check_once(grammar)
    return grammar


def _bounded(params: pb.SamplingParams, limits: InputLimits) -> Grammar | None:
    match params.WhichOneof("constraint"):
        case "json_schema":
            return _json_schema(params.json_schema, limits)
        case "json_object":
            return Grammar(kind=GrammarKind.JSON_SCHEMA, text=ANY_OBJECT) if params.json_object else None
        case "regex":
            return _text(GrammarKind.REGEX, params.regex, "regex", limits)
        case "grammar":
            return _text(GrammarKind.LARK, params.grammar, "grammar", limits)
        case "choice":
            return _choice(params.choice, limits)
        case _:
            return None


def _text(kind: GrammarKind, text: str, name: str, limits: InputLimits) -> Grammar:
    size = len(text.encode())
    reason = f"is {size} bytes long: must be 1 to {limits.grammar_bytes}"
    require(0 < size <= limits.grammar_bytes, f"{_PREFIX}{name}", reason)
    return Grammar(kind=kind, text=text)


def _json_schema(text: str, limits: InputLimits) -> Grammar:
    field = f"{_PREFIX}json_schema"
    grammar = _text(GrammarKind.JSON_SCHEMA, text, "json_schema", limits)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(field, f"is not JSON ({error})"[:200])
    require(isinstance(schema, dict | bool), field, "must be a JSON object that is a schema")
    too_deep = _depth(schema, limits.schema_depth) > limits.schema_depth
    require(not too_deep, field, f"is nested more than {limits.schema_depth} brackets deep: flatten it")
    count = _count_properties(schema)
    reason = f"has {count} properties: send at most {limits.schema_properties}"
    require(count <= limits.schema_properties, field, reason)
    return grammar


def _choice(choice: pb.ChoiceConstraint, limits: InputLimits) -> Grammar:
    field, count = f"{_PREFIX}choice.choices", len(choice.choices)
    require(0 < count <= limits.grammar_choices, field, f"has {count} strings: send 1 to {limits.grammar_choices}")
    for place, text in enumerate(choice.choices):
        require(bool(text), f"{field}[{place}]", "is empty: send at least one character")
    text = json.dumps(list(dict.fromkeys(choice.choices)), ensure_ascii=False)
    size = len(text.encode())
    require(size <= limits.grammar_bytes, field, f"has {size} bytes: send at most {limits.grammar_bytes}")
    return Grammar(kind=GrammarKind.CHOICE, text=text)


def _depth(value: object, enough: int) -> int:
    """Return how deeply objects and lists are nested, or the first number above ``enough``."""
    level, depth = [value], 0
    while depth <= enough and (level := [found for found in level if isinstance(found, dict | list)]):
        level = [inner for outer in level for inner in _inside(outer)]
        depth += 1
    return depth


def _count_properties(schema: object) -> int:
    count, waiting = 0, [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and isinstance(named := value.get("properties"), dict):
            count += len(named)
        waiting.extend(_inside(value))
    return count


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
