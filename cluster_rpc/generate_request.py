"""What a user may ask for, and the message that asks for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from cluster_core.errors import InvalidField
from cluster_rpc.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class FillIn:
    """A prompt for what stands between two texts. ``prefix_first`` is explained in ``generation.proto``."""

    prefix: str
    suffix: str
    prefix_first: bool = False


Prompt = str | FillIn | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, a gap to fill in, token ids, or chat messages such as ``{"role": "user", "content": "Hello"}``."""


class GenerateOptions(TypedDict, total=False):
    """Everything but the prompt; the meaning and the default of each are in ``generation.proto``."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    seed: int
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    min_p: float
    typical_p: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    bad_words: Sequence[str]
    allowed_token_ids: Sequence[int]
    forced_token_ids: Sequence[int]
    logprobs: int
    prompt_logprobs: int
    max_thinking_tokens: int
    thinking_start: str
    thinking_end: str
    json_schema: str | Mapping[str, Any]
    json_object: bool
    regex: str
    grammar: str
    choice: Sequence[str]
    n: int
    request_id: str
    model: str
    cache_salt: str
    priority: int
    recovery: str
    """``recover`` or ``fail``."""


_OUTSIDE_SAMPLING = ("request_id", "model", "cache_salt", "priority")


def make_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """Build the message. Raises `InvalidField` for what cannot be written in it: the server checks the rest."""
    request = pb.GenerateRequest()
    constraints = [field.name for field in pb.SamplingParams.DESCRIPTOR.oneofs_by_name["constraint"].fields]
    given = [name for name in options if name in constraints]
    if len(given) > 1:
        raise InvalidField(given[1], f"cannot stand beside {given[0]}: an answer follows one grammar")
    for name, value in options.items():
        if name in _OUTSIDE_SAMPLING:
            _assign(request, name, value, name)
        elif name == "recovery":
            request.recovery = _recovery(value)
        elif name in pb.SamplingParams.DESCRIPTOR.fields_by_name:
            _assign(request.sampling_params, name, value, f"sampling_params.{name}")
        else:
            raise InvalidField(name, "unknown option; the options are " + ", ".join(GenerateOptions.__annotations__))
    _assign_prompt(request, prompt)
    return request


def _recovery(value: object) -> pb.Recovery:
    for name, recovery in (("recover", pb.RECOVERY_RECOVER), ("fail", pb.RECOVERY_FAIL)):
        if value == name:
            return recovery
    field = "recovery"
    raise InvalidField(field, f"is {value!r}: must be 'recover' or 'fail'")


def _assign_prompt(request: pb.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        _assign(request, "text", prompt, "text")
    elif isinstance(prompt, FillIn):
        request.fim.SetInParent()
        for name in ("prefix", "suffix", "prefix_first"):
            _assign(request.fim, name, getattr(prompt, name), f"fim.{name}")
    elif prompt and isinstance(prompt[0], Mapping):
        for place, message in enumerate(cast("Sequence[Mapping[str, str]]", prompt)):
            added = request.chat.messages.add()
            for name in ("role", "content"):
                _assign(added, name, message.get(name, ""), f"chat.messages[{place}].{name}")
    else:
        request.tokenized.SetInParent()
        _assign(request.tokenized, "input_ids", prompt, "tokenized.input_ids")


def _assign(message: Any, name: str, value: object, field: str) -> None:
    """Set one field; protobuf refuses wrong types, numbers out of range and text that is not Unicode."""
    try:
        if name == "json_schema" and isinstance(value, Mapping):
            setattr(message, name, json.dumps(value))
        elif name == "choice":
            message.choice.choices.extend(value)
        elif isinstance(value, Mapping):
            getattr(message, name).update(value)
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidField(field, f"cannot be sent ({error})") from error
