"""Constraints: which texts they allow, what they refuse, and what of a vocabulary they rest on."""

import json
import pickle
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

import dlm
from dlm.constraints import language as languages
from dlm.constraints.expressions import automaton_of
from dlm.constraints.language import ByteAutomaton, of_pattern
from dlm.constraints.texts import any_object
from dlm.models.model import Model
from dlm.prompts import tokenizer_of

PATTERNS = (
    "(yes|no)",
    "[0-9]{1,5}",
    "a*",
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    "(the |The )?answer (is|=) [0-9]+",
    "[^a-y]+",
    "é|ü{2}|日本",
    "a(12|0-)?|a12-|no|no?0",
    "(?i:THE )*(.|[^)(])",
    r"[]\]a)(]*0?",
    r"[$^a-]|-\$\^|[^$]\\A",
)
ANCHORED = (
    *("a$", "^a", r"\Aa", r"(?:a\z|b)", "x(?:$|y)", "yes$|no", "(?m:a$|b)", "(?x) a # of $"),
    *(r"a(?-u:\b)|b", r"\b{start}a|b", r"a\<|b", r"(?-u:a\B)", r"a\>"),
)
PIECES = (*"a0$^A-.éüz\n()]\\", "yes", "no", "12", "the ", "The ", "answer ", "is", "= ", "日本")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@cache
def built_in() -> Model:
    return dlm.load()


@cache
def held(pattern: str) -> dlm.Constraint:
    return dlm.Constraint.regex(built_in(), pattern)


def takes(constraint: dlm.Constraint, tokens: list[int]) -> bool:
    """Whether a row of these tokens is a text."""
    automaton = constraint.automaton
    state = automaton.start
    for token in tokens:
        state = int(automaton.following[state, automaton.class_of[token]])
    return int(automaton.left[state]) == 0


@hypothesis(max_examples=80, deadline=None)
@given(pattern=st.sampled_from(PATTERNS), pieces=st.lists(st.sampled_from(PIECES), max_size=6))
def test_texts_are_those_of_the_expression(pattern: str, pieces: list[str]) -> None:
    """However they are cut into tokens: by the tokenizer, or at every piece."""
    text, tokenizer = "".join(pieces), tokenizer_of(built_in(), "a test")
    expected = re.fullmatch(pattern, text) is not None
    whole = tokenizer.encode(text, add_special_tokens=False)
    parts = [t for piece in pieces for t in tokenizer.encode(piece, add_special_tokens=False)]
    for tokens in (whole, parts):
        assert takes(held(pattern), tokens) == expected
        assert takes(held(pattern), [*tokens, built_in().spec.eos_id]) == expected
        behind = [*tokens, built_in().spec.stop_ids[-1], *whole]
        assert takes(held(pattern), behind) == expected


def test_special_tokens_are_no_part_of_a_text() -> None:
    everything = held("(?s).*")
    tokenizer = tokenizer_of(built_in(), "a test")
    assert takes(everything, tokenizer.encode("a\n", add_special_tokens=False))
    assert not takes(everything, [2])  # <|start_header_id|>
    assert not takes(everything, [built_in().spec.mask_id])


@pytest.mark.parametrize("name", ["<call>", "na\u00efve", "a\u0120b", "<\u65e5>"])
def test_added_tokens_stand_for_their_text(name: str) -> None:
    """As they are decoded: such as <tool_call> of Qwen's tokenizers, which are not special."""
    model = built_in()
    tokenizer: Any = pickle.loads(pickle.dumps(model.tokenizer))
    tokenizer.add_tokens([name])
    call = tokenizer.convert_tokens_to_ids(name)
    spec = replace(model.spec, vocab_size=model.spec.vocab_size + 1)
    more = replace(model, tokenizer=tokenizer, spec=spec)
    digit = tokenizer.encode("7", add_special_tokens=False)
    text = tokenizer.decode([call, *digit])
    made = dlm.Constraint.choice(more, [text, "another"])
    # One that is no text by itself is never taken.
    assert takes(made, [call, *digit]) == ("\ufffd" not in text)
    assert not takes(made, [call])


def test_distances_count_tokens() -> None:
    """And grow where tokens are never sampled."""
    model = built_in()
    tokenizer = tokenizer_of(model, "a test")
    made = dlm.Constraint.choice(model, ["eats", "friend"])
    automaton = made.automaton
    (word,) = tokenizer.encode(" eats", add_special_tokens=False)
    words = (tokenizer.encode(x, add_special_tokens=False) for x in ("eats", "friend"))
    assert int(automaton.left[automaton.start]) == min(map(len, words))
    spaced = dlm.Constraint.choice(model, [" eats"]).automaton
    assert int(spaced.left[spaced.start]) == 1
    assert int(spaced.without([word]).left[spaced.start]) == 2
    assert spaced.least([word]) == 2
    assert spaced.least([]) == 1


@pytest.mark.parametrize("pattern", ["[a-z]{40}", "(a|b)*a(a|b){6}", "(ab|ab|abc?)x"])
def test_automata_are_the_smallest(pattern: str) -> None:
    """Against pairs of states told apart one after the other."""
    automaton = of_pattern(pattern)
    following, accepting = automaton.following, automaton.accepting
    apart = accepting[:, None] != accepting
    while True:
        more = apart.clone()
        for byte in range(256):
            behind = following[:, byte]
            more |= apart[behind][:, behind]
        if torch.equal(more, apart):
            break
        apart = more
    assert int((~apart).sum()) == len(apart)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        ("regex", "(", "regex must be a regular expression"),
        ("regex", "a(?=b)", "without looking around"),
        ("regex", "[a&&b]", "no text of it can be ended"),
        *(("regex", each, "is not followed: a text is held from its first") for each in ANCHORED),
        ("regex", r"[$]\\\\$", "its anchor at character 8 is not followed"),
        ("regex", "(?P<a[>x))|(?:b", "its group at character 10 ends before it begins"),
        ("regex", "a)|(b", "its group at character 2 ends before it begins"),
        ("regex", r"[)\]]\)[^])](a))", "its group at character 16 ends before it begins"),
        ("regex", r"\p{$}\\p{L}$", "its anchor at character 12 is not followed"),
        ("regex", r"\p{)}\P{L})", "its group at character 11 ends before it begins"),
        ("regex", 3, "regex must be a text, got 3"),
        ("regex", "\ud800", "regex must be text that UTF-8 can hold"),
        ("regex", "(a|b)*a(a|b){13}", "at most 8192 are followed"),
        ("choice", [], "choice must be a list of texts, at least one, got []"),
        ("choice", "ab", "choice must be a list of texts"),
    ],
)
def test_what_is_no_rule_is_refused(make: str, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(dlm.Constraint, make)(built_in(), given)


def test_what_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "SECONDS", 1)
    with pytest.raises(ValueError, match="read in 1 seconds and 2 GiB of memory, got"):
        of_pattern("((a{100}){100}){100}")


def test_the_package_that_reads_expressions_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"outlines-core: pip install -e \"\.\[constraints\]\""):
        of_pattern("a")


def test_choices_stand_for_themselves() -> None:
    signs = [r"a.b*(c)|[d]{2}^$-&~#", " ", "\n\t"]
    made, tokenizer = dlm.Constraint.choice(built_in(), signs), tokenizer_of(built_in(), "a test")
    for each in (*signs, "axb", ""):
        assert takes(made, tokenizer.encode(each, add_special_tokens=False)) == (each in signs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gen_length": 2}, "gen_length must hold a text of the constraint, got 2 tokens for"),
        ({"suppress_tokens": [1, 4]}, "suppress_tokens must leave a stop token"),
        ({"constraint": "[0-9]+"}, "constraint must be made by dlm.Constraint.regex"),
        ({"confidence_eos_eot_inf": True}, "confidence_eos_eot_inf must be off"),
        ({"suppress_tokens": range(6, 768)}, "which no text has"),
        ({"begin_suppress_tokens": range(6, 768)}, "which no text has"),
    ],
)
def test_options_that_leave_no_text_are_refused(options: dict[str, Any], message: str) -> None:
    usual = {"gen_length": 24, "constraint": held("[0-9]{4}-[0-9]{2}")}
    with pytest.raises(ValueError, match=re.escape(message)):
        dlm.generate(built_in(), "When?", **{**usual, **options})


def test_a_constraint_is_for_one_vocabulary(golden: Model) -> None:
    made = held("a*")
    spec = built_in().spec
    others = [replace(spec, stop_ids=(1,)), replace(spec, never=(9,))]
    for other in others:
        with pytest.raises(ValueError, match="must be made for the model it is used with"):
            dlm.generate(replace(built_in(), spec=other), "a", gen_length=4, constraint=made)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        dlm.Constraint.regex(golden, "a*")
    with pytest.raises(ValueError, match="must be made for the model it is used with"):
        dlm.generate(golden, [1], gen_length=4, constraint=made)
    with pytest.raises(ValueError, match="constraint is for generate"):
        dlm.infill(built_in(), "a [MASK]", constraint=made)
    tokenizer: Any = pickle.loads(pickle.dumps(built_in().tokenizer))
    tokenizer.backend_tokenizer.decoder = None
    spaces = replace(built_in(), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="needs a byte-level tokenizer"):
        dlm.Constraint.regex(spaces, "a*")


def test_constraints_are_equal_that_say_the_same() -> None:
    """Not only where one object says it; also one that came from another process."""
    one, two = dlm.Constraint.regex(built_in(), "a*"), dlm.Constraint.regex(built_in(), "a*")
    sent = pickle.loads(pickle.dumps(one))
    assert one == two == sent
    assert len({one, two, sent}) == 1
    assert one != held("[0-9]{1,5}")
    assert one != "a*"
    assert repr(one) == "Constraint('a*')"
    out = [
        dlm.generate(built_in(), "a", gen_length=6, temperature=1.0, constraint=each).tokens
        for each in (one, sent)
    ]
    assert out[0] == out[1]


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text('aé"\\😀')
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def nested(value: Any) -> int:
    """How deep objects and arrays are in each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict | list) + max(map(nested, inner), default=0)


@cache
def objects() -> ByteAutomaton:
    return automaton_of(any_object())


def is_object(text: str) -> bool:
    state = objects().start
    for byte in text.encode():
        state = int(objects().following[state, byte])
    return bool(objects().accepting[state])


@hypothesis(max_examples=80, deadline=None)
@given(value=VALUES, spaced=st.booleans(), data=st.data())
def test_any_json_object_is_one(value: Any, spaced: bool, data: st.DataObject) -> None:
    """And what json.loads takes of what is one but for a sign."""
    separators = (", ", ": ") if spaced else (",", ":")
    text = json.dumps(value, ensure_ascii=False, separators=separators)
    escapes = re.search(r"\\u", text) is not None
    fits = isinstance(value, dict) and nested(value) <= 3 and not escapes
    assert is_object(text) == fits
    place = data.draw(st.integers(0, len(text) - 1))
    sign = data.draw(st.sampled_from('"{}[],:\\0-.e+ta1 '))
    other = text[:place] + sign + text[place + 1 :]
    if is_object(other):
        assert isinstance(json.loads(other), dict)


def test_json_objects_are_generated() -> None:
    made = dlm.Constraint.json_object(built_in())
    signs = tokenizer_of(built_in(), "a test").encode('":', add_special_tokens=False)
    options: dict[str, Any] = {"gen_length": 24, "block_length": 8, "decoder": "random"}
    options["logit_bias"] = dict.fromkeys(signs, 20.0)  # or most of them are empty
    prompts = [f"Who is {name}?" for name in "abcd"]
    out = dlm.generate(built_in(), prompts, constraint=made, temperature=5.0, **options)
    assert out.texts is not None
    assert all(isinstance(json.loads(text), dict) for text in out.texts)
    assert len(set(out.texts)) > 1
    with pytest.raises(ValueError, match="regex must be a regular expression"):
        dlm.Constraint.regex(built_in(), made.name)  # which no constraint of another kind has


@pytest.mark.parametrize("length", [16, 40])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_is_whole_whatever_the_length(length: int, temperature: float) -> None:
    made = person()
    out = dlm.generate(
        built_in(),
        ["Who?", "Who was it that came in by the door yesterday?"],
        constraint=made,
        gen_length=length,
        block_length=8,
        temperature=temperature,
    )
    assert out.texts is not None
    for text in out.texts:
        told = json.loads(text)
        assert isinstance(told["name"], str)
        assert isinstance(told["age"], int)
        assert list(told) == ["name", "age"]


@cache
def person() -> dlm.Constraint:
    return dlm.Constraint.json_schema(built_in(), json.dumps(PERSON))


def test_texts_come_as_they_are_decoded() -> None:
    shots = list(dlm.stream(built_in(), "Who?", constraint=person(), gen_length=24, block_length=8))
    assert json.loads(shots[-1].text or "")["age"] >= 0
    whole = dlm.generate(built_in(), "Who?", constraint=person(), gen_length=24, block_length=8)
    assert shots[-1].tokens == whole.tokens[0]


def test_sure_tokens_take_few_forwards() -> None:
    """Where nothing else may stand a token is certain, and decoders that go by that write it."""
    options: dict[str, Any] = {"gen_length": 20, "block_length": None, "decoder": "threshold"}
    made = dlm.Constraint.choice(built_in(), ['{"kind": "measurement"}'])
    out = dlm.generate(built_in(), "Which?", constraint=made, **options)
    assert out.texts == ['{"kind": "measurement"}']
    # One text, but several ways to cut it into tokens.
    assert out.forwards[0] < len(out.tokens[0]) // 2


def test_a_class_may_have_the_schema() -> None:
    """As those of pydantic have."""
    kind = type("Person", (), {"model_json_schema": staticmethod(lambda: PERSON)})
    made = dlm.Constraint.json_schema(built_in(), kind)
    assert made == dlm.Constraint.json_schema(built_in(), PERSON)
    with pytest.raises(ValueError, match="json_schema must be one that can be followed"):
        dlm.Constraint.json_schema(built_in(), int)


def test_one_for_each_prompt() -> None:
    """Of unlike lengths: each has to hold a text of its own."""
    short, long = held("[0-9]{4}"), held("[0-9]{4}-[0-9]{2}-[0-9]{2}")
    prompts, lengths = ["When?", "Which?"], [4, 12]
    out = dlm.generate(built_in(), prompts, gen_length=lengths, constraint=[short, long])
    for text, one in zip(out.texts or [], (short, long), strict=True):
        assert re.fullmatch(one.name, text)
    each = dlm.generate_each(built_in(), prompts, gen_length=12, constraint=(long, short))
    texts = {number: (one.texts or [""])[0] for number, one in each}
    assert re.fullmatch(long.name, texts[0])
    assert re.fullmatch(short.name, texts[1])
    with pytest.raises(ValueError, match=r"got 4 tokens for .*its shortest text 10"):
        dlm.generate(built_in(), prompts, gen_length=lengths, constraint=[long, short])
    for several, message in (
        ([short], "constraint must be one, or one for each of the 2 prompts, got 1"),
        ([], r"constraint must be made by .*one or None for each prompt, got \[\]"),
        ([short, "a"], "constraint must be made by "),
    ):
        with pytest.raises(ValueError, match=message):
            dlm.generate(built_in(), prompts, constraint=several)  # type: ignore[arg-type]


def test_top_p_cuts_what_may_follow() -> None:
    """To one token here, but never to none."""
    options: dict[str, Any] = {"gen_length": 12, "temperature": 2.0, "decoder": "left_to_right"}
    found = {}
    for top_p in (1e-6, None):
        made = held("[0-9]{4}-[0-9]{2}")
        out = dlm.generate(built_in(), ["When?"] * 4, constraint=made, top_p=top_p, **options)
        found[top_p] = set(out.texts or [])
        assert all(re.fullmatch(made.name, text) for text in found[top_p])
    assert len(found[1e-6]) == 1 < len(found[None])


def test_networks_are_held_to_it_through_transformers() -> None:
    """Which have no tokenizer of their own: it is the one that the constraint was made with."""
    network, tokenizer = built_in().network, tokenizer_of(built_in(), "a test")
    given = tokenizer("When?", return_tensors="pt").input_ids
    out = network.generate(given, constraint=held("[0-9]{4}-[0-9]{2}"), max_new_tokens=12)
    text = tokenizer.decode(out[0, given.shape[1] :], skip_special_tokens=True)
    assert re.fullmatch("[0-9]{4}-[0-9]{2}", text)
    rows = given.repeat(2, 1)
    each = [held("[0-9]{4}-[0-9]{2}"), held("[a-f]{3}")]
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 2}
    out = network.generate(rows, constraint=each, **options)
    texts = tokenizer.batch_decode(out[:, given.shape[1] :], skip_special_tokens=True)
    for text, pattern in zip(texts, (each[0].name,) * 2 + (each[1].name,) * 2, strict=True):
        assert re.fullmatch(pattern, text)
    with pytest.raises(ValueError, match="a configuration must hold what JSON can hold"):
        dlm.DiffusionGenerationConfig(constraint=held("a*"))
