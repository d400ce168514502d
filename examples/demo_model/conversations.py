"""Turn documented functions into short chats, so that the model has seen the turns of its chat template.

A user's turn is the first line of a docstring and the assistant's turn is the code it describes. Functions that
follow each other in one file become the turns of one conversation. The format here and `CHAT_TEMPLATE` must agree.
"""

import ast
import textwrap
from collections.abc import Iterator, Sequence

from examples.demo_model.corpus import SourceFile, code_only

END = "<|endoftext|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SPECIAL_TOKENS = (END, SYSTEM, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '<|system|>\\n' + message['content'] + '\\n' }}"
    "{%- elif message['role'] == 'user' -%}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ '<|assistant|>\\n' + message['content'] + '<|endoftext|>' }}"
    "{%- else -%}{{ raise_exception('unknown role: ' + message['role'] | string"
    " + ' (expected system, user or assistant)') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)

SYSTEM_MESSAGES = ("You write Python.", "You are a helpful assistant.", "You are a Python programmer.")
TURNS_PER_CHAT = 3
LONGEST_ANSWER_CHARS = 1000
SHORTEST_QUESTION_CHARS = 12


def chats(file: SourceFile) -> Iterator[str]:
    """Yield the conversations made from one file; every second one opens with a system message."""
    pairs = list(_documented_functions(file.documented))
    for number, start in enumerate(range(0, len(pairs), TURNS_PER_CHAT)):
        system = SYSTEM_MESSAGES[number // 2 % len(SYSTEM_MESSAGES)] if number % 2 else None
        yield _render(system, pairs[start : start + TURNS_PER_CHAT])


def _render(system: str | None, pairs: Sequence[tuple[str, str]]) -> str:
    opening = f"{SYSTEM}\n{system}\n" if system else ""
    return opening + "".join(f"{USER}\n{question}\n{ASSISTANT}\n{answer}{END}" for question, answer in pairs)


def _documented_functions(text: str) -> Iterator[tuple[str, str]]:
    """Yield (first docstring line, dedented code) of each function or class that is short enough."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.end_lineno is None:
            continue
        question = (ast.get_docstring(node) or "").split("\n")[0].strip()
        source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if len(question) < SHORTEST_QUESTION_CHARS:
            continue
        try:
            answer = code_only(source).rstrip()
        except SyntaxError:  # a string in it that is not indented
            continue
        if len(answer) <= LONGEST_ANSWER_CHARS:
            yield question, answer
