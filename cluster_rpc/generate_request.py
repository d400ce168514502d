"""What a user may ask for, and the message that asks for it."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from cluster_core.errors import InvalidField
from cluster_rpc.v1 import generation_pb2 as pb

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, token ids, or chat messages such as ``{"role": "user", "content": "Hello"}``."""


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
    request_id: str
    model: str
    cache_salt: str
    priority: int


_OUTSIDE_SAMPLING = ("request_id", "model", "cache_salt", "priority")


def make_request(prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """Build the message. Raises `InvalidField` for what cannot be written in it: the server checks the rest."""
    request = pb.GenerateRequest()
    for name, value in options.items():
        if name in _OUTSIDE_SAMPLING:
            _assign(request, name, value, name)
        elif name in pb.SamplingParams.DESCRIPTOR.fields_by_name:
            _assign(request.sampling_params, name, value, f"sampling_params.{name}")
        else:
            raise InvalidField(name, "unknown option; the options are " + ", ".join(GenerateOptions.__annotations__))
    _assign_prompt(request, prompt)
    return request


def _assign_prompt(request: pb.GenerateRequest, prompt: Prompt) -> None:
    if isinstance(prompt, str):
        _assign(request, "text", prompt, "text")
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
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidField(field, f"cannot be sent ({error})") from error
