import json
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from cluster_core.errors import InvalidField, ModelFolderError
from router.chat_template import MAX_OUTPUT_CHARS, ChatMessage, ChatTemplate, load_chat_template
from tests.router_front import tokenizers_for_tests as kinds

PLAIN = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {%- if message['role'] == 'system' and not loop.first %}\n"
    "        {{- raise_exception('the system message must be the first') }}\n"
    "    {%- endif %}\n"
    "    <|{{ message.role }}|>{{ message.content | trim }}{{ eos_token }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RICH = (
    "{% set ns = namespace(turns=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% set ns.turns = ns.turns + 1 %}{% generation %}{{ m | tojson }}{% endgeneration %}"
    "{{ m.content[:3] ~ m.content.upper() ~ m.get('name', '-') }}{% endfor %}{{ ns.turns }}"
    "{% if tools %}tools{% endif %}{{ unk_token is defined }}{{ strftime_now('%Y') }}"
    "{% macro shout(text) %}{{ text }}!{% endmacro %}{{ shout(bos_token) }}{{ range(3) | list }}"
)
CHAT = [
    ChatMessage(role="system", content="Be <brief> & kind"),
    ChatMessage(role="user", content=" né 語 {{ 7*7 }} "),
    ChatMessage(role="assistant", content="hi"),
    ChatMessage(role="user", content="again"),
]


@pytest.mark.parametrize("source", [PLAIN, RICH])
@pytest.mark.parametrize("form", ["string", "list", "file"])
def test_prompts_are_those_of_transformers(tmp_path: Path, source: str, form: str) -> None:
    transformers = pytest.importorskip("transformers")
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": source}]
    in_config = {"string": source, "list": named, "file": "not this one"}[form]
    kinds.write_folder(tmp_path, kinds.byte_level(), chat_template=in_config)
    if form == "file":
        (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = reference.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in CHAT],
        tokenize=False,
        add_generation_prompt=True,
    )
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.render(CHAT) == expected


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None
    kinds.write_folder(tmp_path, kinds.byte_level())
    assert load_chat_template(tmp_path) is None


def test_what_the_template_refuses_is_the_clients_error() -> None:
    template = ChatTemplate(PLAIN, {})
    with pytest.raises(InvalidField, match=r"chat.messages: .*the system message must be the first"):
        template.render([CHAT[1], CHAT[0]])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content / 2 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ nothing.at.all }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception.__globals__.keys() }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(InvalidField, match=r"chat.messages"):
        ChatTemplate(source, {}).render(CHAT)


def test_a_template_cannot_write_without_end() -> None:
    source = "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}"
    with pytest.raises(InvalidField, match="writes too much"):
        ChatTemplate(source, {}).render([ChatMessage(role="user", content="x" * (MAX_OUTPUT_CHARS // 5))])


def test_a_template_cannot_take_for_ever() -> None:
    ticks = count()
    template = ChatTemplate("{% for i in range(99999) %}a{% endfor %}", {}, clock=lambda: float(next(ticks)))
    with pytest.raises(InvalidField, match="takes too long"):
        template.render(CHAT)


def test_the_date_comes_from_outside() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b') }}", {}, now=lambda: datetime(2031, 5, 4, tzinfo=UTC))
    assert template.render(CHAT) == "04 May"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", json.dumps({"chat_template": "{% for %}"})),
        ("chat_template.jinja", "{{ unclosed"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_template_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelFolderError, match=name):
        load_chat_template(tmp_path)
