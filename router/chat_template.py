"""Chat messages to a prompt, by the Jinja template of the model folder.

A template is a program from a model's author. It runs in Jinja's immutable sandbox, sees plain strings only, and may
write `MAX_OUTPUT_CHARS` characters and take `MAX_RENDER_S` seconds, checked at each piece it writes (a loop that writes
nothing is bounded by the sandbox's range limit alone). What templates may use beyond Jinja is what transformers gives
them: `raise_exception`, `strftime_now`, ``tojson`` without HTML escapes, ``{% generation %}`` and loop controls.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster_core.errors import InvalidField, ModelFolderError

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
MAX_OUTPUT_CHARS = 4 * 1024 * 1024
MAX_RENDER_S = 2.0

_MESSAGES_FIELD = "chat.messages"
_TOKEN_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template with the tokens it may name (``bos_token``, ``eos_token``, ...)."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC).astimezone(),
    ) -> None:
        """Compile ``source``. Raises `jinja2.TemplateError` when it is no template."""
        self._clock = clock
        self._special_tokens = dict(special_tokens)
        extensions = (_Generation, "jinja2.ext.loopcontrols")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
        self._template = environment.from_string(source)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """Return the prompt that asks for the assistant's next turn.

        Raises `InvalidField` when the template refuses the messages, cannot handle them, or writes without end.
        """
        values = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_tokens,
        }
        try:
            return self._bounded(values)
        except InvalidField:
            raise
        except Exception as error:  # a template can fail in any way Python can
            field, reason = _MESSAGES_FIELD, f"the model's chat template refuses them: {error}"
            raise InvalidField(field, reason) from error

    def _bounded(self, values: Mapping[str, Any]) -> str:
        deadline = self._clock() + MAX_RENDER_S
        pieces: list[str] = []
        written = 0
        for piece in self._template.generate(values):
            written += len(piece)
            if written > MAX_OUTPUT_CHARS or self._clock() > deadline:
                field, reason = _MESSAGES_FIELD, "the model's chat template writes too much or takes too long for them"
                raise InvalidField(field, reason)
            pieces.append(piece)
        return "".join(pieces)


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """Read the template of a model folder; None when it has none. Raises `ModelFolderError`.

    ``chat_template.jinja`` wins over ``tokenizer_config.json``, where the template is a string, or a list of named
    ones of which ``default`` is taken.
    """
    config_path = folder / CONFIG_FILE
    config = _read_object(config_path)
    special = {**_read_object(folder / SPECIAL_TOKENS_FILE), **config}
    file_path = folder / TEMPLATE_FILE
    try:
        if file_path.is_file():
            origin, source = file_path, file_path.read_text(encoding="utf-8")
        else:
            origin, source = config_path, _template_in(config)
        return ChatTemplate(source, _special_tokens(special)) if source else None
    except (jinja2.TemplateError, OSError, UnicodeDecodeError) as error:
        message = f"{origin}: the chat template cannot be read ({error})"
        raise ModelFolderError(message) from error


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: not valid JSON ({error})"
        raise ModelFolderError(message) from error
    if not isinstance(found, dict):
        message = f"{path}: must hold a JSON object"
        raise ModelFolderError(message)
    return found


def _template_in(config: Mapping[str, Any]) -> str:
    found = config.get("chat_template") or ""
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default") or ""
    return found if isinstance(found, str) else ""


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the named tokens, which the file writes as text or as an object with ``content``."""
    tokens: dict[str, str] = {}
    for name in _TOKEN_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens


class _Generation(Extension):
    """Lets ``{% generation %}`` stand for its body: it marks the assistant's turns for training, not for serving."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block to a scope that holds its body."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: object, **options: Any) -> str:
    """Write JSON as transformers' filter does: no escapes for HTML, none for letters beyond ASCII."""
    return json.dumps(value, **{"ensure_ascii": False, **options})
