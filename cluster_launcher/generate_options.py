"""What `baton generate` can ask of the sampling, and the request's options that it means."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cluster_core.errors import SettingsError

if TYPE_CHECKING:
    from cluster_rpc.generate_request import GenerateOptions


class Recovery(StrEnum):
    """What becomes of a request when a worker fails it."""

    RECOVER = "recover"
    FAIL = "fail"


_SAMPLING = "Sampling"
_CONTENT = "What the answer may be"

TopP = Annotated[float | None, typer.Option(help="Nucleus, in (0, 1].", rich_help_panel=_SAMPLING)]
TopK = Annotated[int | None, typer.Option(help="0 means all tokens.", rich_help_panel=_SAMPLING)]
MinP = Annotated[float | None, typer.Option(help="Share of the best token's, in [0, 1).", rich_help_panel=_SAMPLING)]
TypicalP = Annotated[float | None, typer.Option(help="Typical sampling, in (0, 1].", rich_help_panel=_SAMPLING)]
Seed = Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.", rich_help_panel=_SAMPLING)]
Choices = Annotated[int | None, typer.Option("--n", help="How many answers, 1 to 8.", rich_help_panel=_SAMPLING)]
PresencePenalty = Annotated[float | None, typer.Option(help="-2 to 2.", rich_help_panel=_SAMPLING)]
FrequencyPenalty = Annotated[float | None, typer.Option(help="-2 to 2.", rich_help_panel=_SAMPLING)]
RepetitionPenalty = Annotated[float | None, typer.Option(help="In (0, 2]; 1: none.", rich_help_panel=_SAMPLING)]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(help="TOKEN=BIAS, -100 to 100. May be repeated.", metavar="TOKEN=BIAS", rich_help_panel=_SAMPLING),
]
Logprobs = Annotated[
    int | None, typer.Option(help="So many alternatives of each token, in --json.", rich_help_panel=_SAMPLING)
]
PromptLogprobs = Annotated[
    int | None, typer.Option(help="The same for the prompt's tokens, 0 to 5.", rich_help_panel=_SAMPLING)
]
MinTokens = Annotated[int | None, typer.Option(help="Fewest tokens to write.", rich_help_panel=_CONTENT)]
BadWords = Annotated[
    list[str] | None,
    typer.Option("--bad-word", help="Must not be written. May be repeated.", rich_help_panel=_CONTENT),
]
MaxThinkingTokens = Annotated[int | None, typer.Option(help="Then the thinking is ended.", rich_help_panel=_CONTENT)]
JsonSchema = Annotated[
    str | None, typer.Option(help="Of the JSON to write, or @FILE that holds it.", rich_help_panel=_CONTENT)
]
JsonObject = Annotated[bool, typer.Option("--json-object", help="Write a JSON object.", rich_help_panel=_CONTENT)]
Regex = Annotated[str | None, typer.Option(help="What the answer must match.", rich_help_panel=_CONTENT)]
Grammar = Annotated[
    str | None, typer.Option(help="In Lark's notation, or @FILE that holds it.", rich_help_panel=_CONTENT)
]
Choice = Annotated[list[str] | None, typer.Option(help="A possible answer. To be repeated.", rich_help_panel=_CONTENT)]
Suffix = Annotated[
    str | None, typer.Option(help="Fill in what stands between TEXT and this.", rich_help_panel=_CONTENT)
]

WhenAWorkerFails = Annotated[
    Recovery | None,
    typer.Option("--recovery", help="When a worker fails: go on elsewhere (the default), or end the request."),
]


def chosen(values: Mapping[str, Any]) -> "GenerateOptions":
    """Return the options that were given: those that are not None, empty or False. Raises `SettingsError`."""
    options = {
        name: value for name, value in values.items() if value is not None and value is not False and value != []
    }
    if "logit_bias" in options:
        options["logit_bias"] = _biases(options["logit_bias"])
    for name in ("json_schema", "grammar"):
        if name in options:
            options[name] = _text_or_file(options[name], f"--{name.replace('_', '-')}")
    return cast("GenerateOptions", options)


def _biases(written: Sequence[str]) -> dict[int, float]:
    biases: dict[int, float] = {}
    for entry in written:
        token_id, _, bias = entry.partition("=")
        try:
            biases[int(token_id)] = float(bias)
        except ValueError as error:
            message = f"--logit-bias: {entry!r} is not TOKEN=BIAS, such as 42=-1.5"
            raise SettingsError(message) from error
    return biases


def _text_or_file(value: str, option: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{option}: {value[1:]} cannot be read ({error})"
        raise SettingsError(message) from error
