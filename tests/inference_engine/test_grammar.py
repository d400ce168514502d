"""Answers that must match a grammar: what random logits make of them, and that masks follow from tokens alone."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cluster_core.errors import InvalidField, ModelFolderError
from cluster_core.sampling import Grammar, GrammarKind, Sampling
from inference_engine import grammar_masks
from inference_engine.grammar import CompiledGrammar, Vocabulary, check_grammar, compile_grammar, vocabulary_of
from inference_engine.grammar_masks import GrammarMasks
from inference_engine.sampler import draw_tokens
from inference_engine.sampling_edits import Draw
from inference_engine.step_faults import NothingAllowed

FOLDER = Path(__file__).parents[2] / "examples" / "demo_model"
VOCABULARY = 4100
"""Four more than the tokenizer knows, as models have whose vocabulary is rounded up."""
END = 0
LONGEST = 200

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "action": {"enum": ["refund", "track", "ask a human"]},
            "order": {"type": "integer", "minimum": 0, "maximum": 999},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-c]{1,3}$"}, "maxItems": 2},
            "sure": {"type": "boolean"},
        },
        "required": ["action", "order", "sure"],
        "additionalProperties": False,
    }
)
DATE = r"[0-9]{4}-(0[1-9]|1[0-2])(T[0-2][0-9])?"
CALL = 'start: call\ncall: NAME "(" (call ("," call)?)? ")"\nNAME: /[a-z]{1,3}/\n'
CHOICES = ["yes", "no", 'quote " and \\ and\nline', "é 😀"]


def grammar(kind: str, text: str) -> Grammar:
    return Grammar(kind=GrammarKind(kind), text=text)


GRAMMARS = {
    "schema": grammar("json_schema", SCHEMA),
    "regex": grammar("regex", DATE),
    "lark": grammar("lark", CALL),
    "choice": grammar("choice", json.dumps(CHOICES)),
}


@cache
def tokenizer() -> Any:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def tokens_of(text: str) -> list[int]:
    ids: list[int] = tokenizer().encode(text, add_special_tokens=False).ids
    return ids


@cache
def vocabulary() -> Vocabulary:
    return vocabulary_of(FOLDER, VOCABULARY, frozenset({END}))


@cache
def compiled(rule: Grammar) -> CompiledGrammar:
    return compile_grammar(rule, vocabulary())


@pytest.fixture
def masks() -> GrammarMasks:
    made = GrammarMasks(FOLDER, VOCABULARY, frozenset({END}))
    made._vocabulary = vocabulary()  # a tenth of a second each
    return made


def fresh_mask(rule: Grammar, answer: Sequence[int]) -> list[bool]:
    """Return the mask of a state that has read nothing before."""
    row = np.zeros(-(-VOCABULARY // 32), dtype=np.uint32)
    compiled(rule).begin().write_mask(answer, row)
    return np.unpackbits(row.view(np.uint8), count=VOCABULARY, bitorder="little").astype(bool).tolist()


def wish(rule: Grammar | None, *, temperature: float = 1.0, seed: int = 1) -> Sampling:
    return Sampling(
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        seed=seed,
        max_tokens=LONGEST,
        stop_token_ids=frozenset({END}),
        grammar=rule,
    )


def random_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn((rows, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 2


def a_draw(sampling: Sampling, answer: Sequence[int]) -> Draw:
    return Draw(sampling=sampling, position=len(answer), tokens=np.array(answer, dtype=np.int64))


def write(masks: GrammarMasks, sampling: Sampling, first: Sequence[int] = ()) -> list[int]:
    """Return an answer of random logits, which are the same for the same tokens before."""
    answer = list(first)
    while len(answer) < LONGEST and (not answer or answer[-1] != END):
        logits = random_logits(hash((sampling.seed, tuple(answer))) % 2**31)
        answer += draw_tokens(logits, [a_draw(sampling, answer)], masks)
    return answer


def is_order(text: str) -> bool:
    found = json.loads(text)
    return (
        found["action"] in {"refund", "track", "ask a human"}
        and type(found["order"]) is int
        and 0 <= found["order"] <= 999
        and type(found["sure"]) is bool
        and len(found.get("tags", [])) <= 2
        and all(re.fullmatch("[a-c]{1,3}", tag) for tag in found.get("tags", []))
        and found.keys() <= {"action", "order", "sure", "tags"}
    )


def is_call(text: str) -> bool:
    while re.search(r"\(", text):
        shorter = re.sub(r"[a-z]{1,3}\((x(,x)?)?\)", "x", text, count=1)
        if shorter == text:
            return False
        text = shorter
    return text == "x"


MATCHES: dict[str, Callable[[str], bool]] = {
    "schema": is_order,
    "regex": lambda text: re.fullmatch(DATE, text) is not None,
    "lark": is_call,
    "choice": lambda text: text in CHOICES,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", GRAMMARS)
def test_random_logits_write_only_what_matches(masks: GrammarMasks, name: str, temperature: float) -> None:
    ended = 0
    for seed in range(8):
        answer = write(masks, wish(GRAMMARS[name], temperature=temperature, seed=seed))
        if answer[-1] == END:
            ended += 1
            text = tokenizer().decode(answer[:-1], skip_special_tokens=False)
            assert MATCHES[name](text), text
    assert ended >= 4


@settings(max_examples=8, deadline=None)
@given(name=st.sampled_from(sorted(GRAMMARS)), seed=st.integers(0, 2**20), cut=st.integers(0, LONGEST))
def test_a_state_that_followed_and_one_made_anew_agree(name: str, seed: int, cut: int) -> None:
    masks = GrammarMasks(FOLDER, VOCABULARY, frozenset({END}))
    masks._vocabulary = vocabulary()
    sampling = wish(GRAMMARS[name], seed=seed)
    answer = write(masks, sampling)[:30]
    for length in range(len(answer) + 1):
        (followed,) = masks.allowed(GRAMMARS[name], [answer[:length]]).tolist()
        assert followed == fresh_mask(GRAMMARS[name], answer[:length])
    resumed = GrammarMasks(FOLDER, VOCABULARY, frozenset({END}))
    resumed._vocabulary = vocabulary()
    assert write(resumed, sampling, write(masks, sampling)[:cut]) == write(masks, sampling)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8), st.booleans()), min_size=1, max_size=6),
)
def test_drafts_leave_no_trace(seed: int, lengths: list[tuple[int, int, bool]]) -> None:
    """Each step knows some more tokens of the answer, and guesses some, rightly or not."""
    masks = GrammarMasks(FOLDER, VOCABULARY, frozenset({END}))
    masks._vocabulary = vocabulary()
    rule = GRAMMARS["schema"]
    answer = write(masks, wish(rule, seed=seed))
    other = write(masks, wish(rule, seed=seed + 1))
    known = 0
    for more, guessed, right in lengths:
        known = min(len(answer), known + more)
        guesses = (answer if right else other)[known : known + guessed]
        prefixes = [answer[:known] + guesses[:count] for count in range(len(guesses) + 1)]
        rows = masks.allowed(rule, prefixes).tolist()
        assert rows == [fresh_mask(rule, prefix) for prefix in prefixes]


def test_rows_of_one_step_are_as_alone(masks: GrammarMasks) -> None:
    rules = [None, *GRAMMARS.values(), None, GRAMMARS["schema"], grammar("json_schema", '{"type": "object"}')]
    draws = [a_draw(wish(rule, temperature=row % 2, seed=row), []) for row, rule in enumerate(rules)]
    logits = random_logits(3, len(draws))
    together = draw_tokens(logits, draws, masks)
    fresh = GrammarMasks(FOLDER, VOCABULARY, frozenset({END}))
    alone = [draw_tokens(logits[row : row + 1], [draw], fresh)[0] for row, draw in enumerate(draws)]
    assert together == alone


def test_two_answers_that_part_have_their_own_states(masks: GrammarMasks) -> None:
    rule = GRAMMARS["schema"]
    first, second = (write(masks, wish(rule, seed=seed)) for seed in (1, 2))
    for length in range(min(len(first), len(second))):
        pair = [first[:length], second[:length]]
        assert masks.allowed(rule, pair).tolist() == [fresh_mask(rule, answer) for answer in pair]


def test_what_is_complete_must_end(masks: GrammarMasks) -> None:
    rule = grammar("choice", '["yes", "no"]')
    whole = tokens_of("yes")
    for answer in (whole, [*whole, END], [*whole, END, END]):
        assert masks.allowed(rule, [answer]).nonzero()[:, 1].tolist() == [END]


def test_what_may_go_on_may_also_end(masks: GrammarMasks) -> None:
    (mask,) = masks.allowed(grammar("regex", "[0-9]+"), [tokens_of("42")])
    assert mask[END]
    assert mask.sum() > 10


@pytest.mark.parametrize("answer", ["maybe", "ye\x00", "yess"])
def test_nothing_follows_what_is_not_allowed(masks: GrammarMasks, answer: str) -> None:
    assert not masks.allowed(grammar("choice", '["yes", "no"]'), [tokens_of(answer), [END], [VOCABULARY - 1]]).any()


def test_tokens_without_text_are_never_allowed(masks: GrammarMasks) -> None:
    (mask,) = masks.allowed(grammar("regex", "(.|\n)*"), [[]])
    assert mask.nonzero()[:, 0].tolist()[0] == END
    assert not mask[1:4].any()  # special tokens
    assert not mask[4096:].any()


@pytest.mark.parametrize("logits", [4096, 4090])
def test_there_may_be_fewer_logits_than_tokens(logits: int) -> None:
    masks = GrammarMasks(FOLDER, logits, frozenset({END, 4099}))
    assert masks.allowed(grammar("regex", ".*"), [[]]).shape == (1, logits)


def test_anchors_of_a_regex_change_nothing(masks: GrammarMasks) -> None:
    plain, anchored = (masks.allowed(grammar("regex", text), [[], tokens_of("ab")]) for text in ("ab?", "^ab?$"))
    assert plain.tolist() == anchored.tolist()


def test_white_space_between_the_parts_of_json_is_bounded(masks: GrammarMasks) -> None:
    rule = grammar("json_schema", '{"type": "array"}')
    space = tokens_of(" ")
    assert len(space) == 1
    assert masks.allowed(rule, [[*tokens_of("["), *space * 20]])[0, space[0]]
    assert not masks.allowed(rule, [[*tokens_of("["), *space * 32]])[0, space[0]]


def test_an_answer_that_exceeds_the_limits_ends_alone(masks: GrammarMasks) -> None:
    rule = grammar("lark", "start: A\nA: " + " & ".join(f"/.*w{number}.*/" for number in range(9)))
    good = a_draw(wish(GRAMMARS["regex"]), [])
    answer: list[int] = []
    while masks.allowed(rule, [answer]).any():
        answer += draw_tokens(random_logits(len(answer)), [a_draw(wish(rule), answer)], masks)
    with pytest.raises(NothingAllowed) as raised:
        draw_tokens(random_logits(0, 2), [good, a_draw(wish(rule), answer)], masks)
    assert raised.value.places == (1,)
    assert len(draw_tokens(random_logits(0), [good], masks)) == 1


def chain(rules: int) -> str:
    return "start: a0\n" + "\n".join(f'a{place}: "y"? a{place + 1}' for place in range(rules)) + f'\na{rules}: "x"\n'


def deep_schema() -> str:
    """Return one whose nesting overflows a stack of the usual 8 MiB."""
    parts = {
        f"a{place}": json.loads('{"anyOf":[' * 55 + f'{{"items": {{"$ref": "#/$defs/a{place + 1}"}}}}' + "]}" * 55)
        for place in range(60)
    }
    return json.dumps({"$ref": "#/$defs/a0", "$defs": {**parts, "a60": {"type": "string"}}})


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"type":'),
        ("json_schema", "[]"),
        ("json_schema", '{"type": "thing"}'),
        ("json_schema", '{"not": {"type": "string"}}'),
        ("json_schema", '{"not": {"type": "string"}, "x-guidance": {"lenient": true}}'),
        ("json_schema", '{"$ref": "http://127.0.0.1/schema.json"}'),
        ("json_schema", '{"$ref": "#/$defs/missing"}'),
        ("json_schema", "[" * 60_000),
        ("json_schema", '{"enum": ["\\ud800"]}'),
        ("json_schema", '{"minimum": 1e400, "type": "number"}'),
        ("json_schema", '{"type": "integer", "multipleOf": 10000019}'),
        ("json_schema", '{"anyOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}'),
        ("json_schema", '{"multipleOf": 1e-8, "items": {"multipleOf": 3}}'),
        ("json_schema", json.dumps({"allOf": [{"type": "string", "pattern": f"w{place}"} for place in range(40)]})),
        ("json_schema", json.dumps({"anyOf": [{"pattern": f"w{place}"} for place in range(40)], "pattern": "x"})),
        ("regex", "(ab"),
        ("regex", "(?=a)b"),
        ("regex", ""),
        ("regex", "a" * 65_537),
        ("regex", "\ud800"),
        ("lark", 'start: "a" missing'),
        ("lark", "start: %json {}"),
        ("lark", "start: A\nA: " + " & ".join(f"/.*w{place}.*/" for place in range(40))),
        ("lark", chain(3000)),
        ("choice", "[]"),
        ("choice", "{}"),
        ("choice", '["a", 1]'),
        ("choice", '["a", ""]'),
        ("choice", '["\\udc00"]'),
        ("choice", "yes"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(kind: str, text: str) -> None:
    field = {"lark": "sampling_params.grammar"}.get(kind, f"sampling_params.{kind}")
    with pytest.raises(InvalidField) as raised:
        check_grammar(grammar(kind, text))
    assert raised.value.field == field
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    with pytest.raises(InvalidField):
        compile_grammar(grammar(kind, text), vocabulary())


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", SCHEMA),
        ("json_schema", "{}"),
        ("json_schema", '{"type": "number", "multipleOf": 0.01, "title": "price"}'),
        ("json_schema", json.dumps({"properties": {f"p{place}": {"pattern": f"w{place}"} for place in range(40)}})),
        ("json_schema", '{"$ref": "#/$defs/node", "$defs": {"node": {"items": {"$ref": "#/$defs/node"}}}}'),
        ("json_schema", deep_schema()),
        ("regex", r"(?i)[a-z_]\w{0,30}"),
        ("regex", 'a/b\n"'),
        ("lark", CALL),
        ("choice", json.dumps(CHOICES)),
        ("choice", json.dumps([f"label {place}" for place in range(3000)])),
    ],
)
def test_what_can_be_served_is_accepted(kind: str, text: str) -> None:
    check_grammar(grammar(kind, text))
    compile_grammar(grammar(kind, text), vocabulary())


async def test_a_prepared_grammar_is_compiled_once(masks: GrammarMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    await masks.prepare(GRAMMARS["regex"])
    monkeypatch.setattr(grammar_masks, "compile_grammar", None)
    await masks.prepare(grammar("regex", DATE))
    assert masks.allowed(GRAMMARS["regex"], [[]]).any()


async def test_preparing_tells_what_is_wrong(masks: GrammarMasks) -> None:
    with pytest.raises(InvalidField):
        await masks.prepare(grammar("regex", "("))
    with pytest.raises(ModelFolderError, match="end-of-text"):
        await GrammarMasks(FOLDER, VOCABULARY, frozenset()).prepare(GRAMMARS["regex"])
    with pytest.raises(ModelFolderError, match="end-of-text"):
        await GrammarMasks(FOLDER, VOCABULARY, frozenset({4099})).prepare(GRAMMARS["regex"])


def test_what_is_kept_is_bounded(masks: GrammarMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_masks, "MOST_GRAMMARS", 2)
    monkeypatch.setattr(grammar_masks, "MOST_STATES", 3)
    rules = [grammar("regex", f"[a-z]{{{length}}}") for length in range(1, 6)]
    texts = [tokens_of(letter) for letter in "abcdefgh"]
    expected = [[fresh_mask(rule, text) for text in texts] for rule in rules]
    for _ in range(2):
        assert [masks.allowed(rule, texts).tolist() for rule in rules] == expected
    assert len(masks._compiled) == 2
    assert len(masks._states) == 3


def test_who_has_no_grammar_loads_no_library() -> None:
    code = "import sys, inference_engine.grammar as grammar; print({'llguidance', 'torch'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"
