"""The bounds on a client's request. Every refusal names the field, what is wrong with it and what would be right.

These functions know the protocol's fields and the limits, and nothing of the cluster's state. They run before anything
is allocated for the request.
"""

import re
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
    choices: int = 8
    logprobs: int = 20
    prompt_logprobs: int = 5
    logit_biases: int = 1024
    logit_bias: float = 100.0
    allowed_token_ids: int = 16 * 1024
    forced_token_ids: int = 1024
    bad_words: int = 64
    bad_word_bytes: int = 64
    grammar_bytes: int = 16 * 1024
    grammar_choices: int = 256
    schema_depth: int = 32
    """Of brackets: a schema within a schema takes two."""
    schema_properties: int = 256


def checked_prompt_text(text: str, limits: InputLimits) -> str:
    """Return a prompt given as text."""
    require(bool(text), "text", "is empty: send at least one character")
    _require_text(text, "text", limits.prompt_bytes)
    return text


def checked_gap(fim: pb.FimInput, limits: InputLimits) -> None:
    """Check the two texts around a gap, one of which may be empty."""
    require(bool(fim.prefix or fim.suffix), "fim", "is empty: send a prefix, a suffix or both")
    _require_text(fim.prefix, "fim.prefix", limits.prompt_bytes)
    _require_text(fim.suffix, "fim.suffix", limits.prompt_bytes)
    size = len(fim.prefix.encode()) + len(fim.suffix.encode())
    require(size <= limits.prompt_bytes, "fim", f"has {size} bytes of text: send at most {limits.prompt_bytes}")


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


def checked_recovery(recovery: int) -> bool:
    """Return whether the request goes on elsewhere when a worker fails it."""
    known = pb.Recovery.values()
    reason = f"is {recovery}: must be RECOVERY_RECOVER ({pb.RECOVERY_RECOVER}) or RECOVERY_FAIL ({pb.RECOVERY_FAIL})"
    require(recovery in known, "recovery", reason)
    return recovery != pb.RECOVERY_FAIL


def quoted(text: str) -> str:
    """Return a client's text as it may stand in an answer and in a log: short, and without control characters."""
    return repr(clip(re.sub(r"[\x00-\x1f\x7f]", "?", text[:64])))


def _require_text(text: str, field: str, limit_bytes: int) -> None:
    size = len(text.encode())
    require(size <= limit_bytes, field, f"is {size} bytes long: send at most {limit_bytes}")
    if NUL in text:
        refuse(field, f"has a NUL character at position {text.index(NUL)}: remove it")
