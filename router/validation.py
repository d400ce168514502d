"""The bounds on a client's request. Every refusal names the field, what is wrong with it and what would be right.

These functions know the protocol's fields and the limits, and nothing of the cluster's state. They run before anything
is allocated for the request.
"""

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cluster_core.errors import TokenOutOfRange
from cluster_rpc.errors import clip
from cluster_rpc.field_checks import refuse, require
from cluster_rpc.v1 import generation_pb2 as pb
from router.chat_template import ChatMessage

ROLES = ("system", "user", "assistant")
NUL = "\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """How much of each thing a request may bring."""

    prompt_bytes: int = 1024 * 1024
    chat_messages: int = 256
    chat_message_bytes: int = 256 * 1024
    stop_strings: int = 16
    stop_string_bytes: int = 128
    stop_strings_bytes: int = 1024
    stop_token_ids: int = 64
    cache_salt_bytes: int = 64
    lowest_priority: int = 7
    temperature: float = 2.0


def checked_prompt_text(text: str, limits: InputLimits) -> str:
    """Return a prompt given as text."""
    require(bool(text), "text", "is empty: send at least one character")
    _require_text(text, "text", limits.prompt_bytes)
    return text


def checked_messages(messages: Sequence[pb.ChatMessage], limits: InputLimits) -> list[ChatMessage]:
    """Return a prompt given as a conversation."""
    field = "chat.messages"
    require(bool(messages), field, "is empty: send at least one message")
    require(
        len(messages) <= limits.chat_messages,
        field,
        f"has {len(messages)} messages: send at most {limits.chat_messages}",
    )
    for place, message in enumerate(messages):
        role = f"is {quoted(message.role)}: must be one of {', '.join(ROLES)}"
        require(message.role in ROLES, f"{field}[{place}].role", role)
        _require_text(message.content, f"{field}[{place}].content", limits.chat_message_bytes)
    size = sum(len(message.content.encode()) for message in messages)
    require(size <= limits.prompt_bytes, field, f"has {size} bytes of text: send at most {limits.prompt_bytes}")
    return [ChatMessage(role=message.role, content=message.content) for message in messages]


def checked_token_ids(token_ids: Sequence[int], field: str, vocab_size: int) -> tuple[int, ...]:
    """Return token ids that the model knows. Raises `TokenOutOfRange` for others."""
    found = tuple(token_ids)
    if found and max(found) >= vocab_size:
        place = next(place for place, token_id in enumerate(found) if token_id >= vocab_size)
        reason = f"token id {found[place]} is not in the vocabulary: must be 0 to {vocab_size - 1}"
        where = f"{field}[{place}]"
        raise TokenOutOfRange(where, reason)
    return found


def checked_temperature(params: pb.SamplingParams, limits: InputLimits) -> float:
    """Return the temperature; 1 where none is given."""
    if not params.HasField("temperature"):
        return 1.0
    value = written_number(params.temperature)
    require(
        0 <= value <= limits.temperature,
        "sampling_params.temperature",
        f"is {value}: must be 0 (greedy) to {limits.temperature:g}",
    )
    return value


def checked_top_p(value: float) -> float:
    """Return the probability mass to draw from; 0 means that none is given."""
    top_p = written_number(value)
    require(0 <= top_p <= 1, "sampling_params.top_p", f"is {top_p}: must be above 0 and at most 1 (unset means 1)")
    return top_p or 1.0


def checked_stop(params: pb.SamplingParams, limits: InputLimits) -> tuple[str, ...]:
    """Return the stop strings, each once."""
    field = "sampling_params.stop"
    count = len(params.stop)
    require(count <= limits.stop_strings, field, f"has {count} strings: send at most {limits.stop_strings}")
    for place, stop in enumerate(params.stop):
        size = len(stop.encode())
        reason = f"is {size} bytes long: must be 1 to {limits.stop_string_bytes}"
        require(0 < size <= limits.stop_string_bytes, f"{field}[{place}]", reason)
    total = sum(len(stop.encode()) for stop in params.stop)
    require(total <= limits.stop_strings_bytes, field, f"has {total} bytes: send at most {limits.stop_strings_bytes}")
    return tuple(dict.fromkeys(params.stop))


def checked_stop_token_ids(params: pb.SamplingParams, limits: InputLimits, vocab_size: int) -> frozenset[int]:
    """Return the client's own stop tokens."""
    field = "sampling_params.stop_token_ids"
    count = len(params.stop_token_ids)
    require(count <= limits.stop_token_ids, field, f"has {count} ids: send at most {limits.stop_token_ids}")
    return frozenset(checked_token_ids(params.stop_token_ids, field, vocab_size))


def checked_cache_salt(salt: str, limits: InputLimits) -> str:
    """Return the salt of the request's blocks."""
    size = len(salt.encode())
    require(size <= limits.cache_salt_bytes, "cache_salt", f"is {size} bytes long: at most {limits.cache_salt_bytes}")
    return salt


def checked_priority(priority: int, limits: InputLimits) -> int:
    """Return the place in the queue."""
    reason = f"is {priority}: must be 0 (first) to {limits.lowest_priority} (last)"
    require(priority <= limits.lowest_priority, "priority", reason)
    return priority


def written_number(value: float) -> float:
    """Return the number that the client wrote: 0.7, where the wire's 32 bits say 0.699999988.

    It is the shortest decimal that the same 32 bits stand for, so no request means anything else by it.
    """
    if not math.isfinite(value):
        return value
    candidates = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((number for number in candidates if _float32(number) == value), value)


def quoted(text: str) -> str:
    """Return a client's text as it may stand in an answer and in a log: short, and without control characters."""
    return repr(clip(re.sub(r"[\x00-\x1f\x7f]", "?", text[:64])))


def _float32(number: float) -> float:
    (value,) = struct.unpack("f", struct.pack("f", number))
    return float(value)


def _require_text(text: str, field: str, limit_bytes: int) -> None:
    size = len(text.encode())
    require(size <= limit_bytes, field, f"is {size} bytes long: send at most {limit_bytes}")
    if NUL in text:
        refuse(field, f"has a NUL character at position {text.index(NUL)}: remove it")
