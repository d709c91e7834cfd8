"""Fields that are no field here, or not what they should be, and bodies that are none."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm.models.model import Model
from dlm.serving import names, replies
from dlm.serving.protocol import Asked, read_request
from dlm.serving.refusals import field_of

MESSAGES = [{"role": "user", "content": "Compute: 60/5"}]

Ask = Callable[..., Asked]


@pytest.fixture(scope="module")
def tiny() -> Model:
    """The built-in model, whose tokenizer has a chat template."""
    return dlm.load()


@pytest.fixture(scope="module")
def ask(tiny: Model) -> Ask:
    """What a body of some fields asks of the built-in model."""

    def read(**body: Any) -> Asked:
        chat = "messages" in body
        data = json.dumps(body if chat else {"prompt": "1+1", **body}).encode()
        return read_request(
            data, chat=chat, model=tiny, name="m", defaults={"gen_length": 16, "seed": 0}
        )

    return read


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "messages must be a list"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": "hi"}]}, r"messages\[0\] must be an object with texts"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content must be a text"),
        ({"messages": [*MESSAGES, {"role": "user", "content": None}]}, r"messages\[1\].content"),
        ({"messages": [{"role": "user", "content": []}]}, "content must be a text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "text that UTF-8 can hold"),
        ({"messages": [{"role": "\ud800", "content": "a"}]}, "text that UTF-8 can hold"),
        ({"messages": [{"role": "u", "content": "a", "name": "b"}]}, "has no place for it"),
        ({"messages": MESSAGES, "suffix": "a"}, "unknown field 'suffix'"),
        (
            {"messages": [{"role": "u", "content": [{"type": "image_url", "image_url": {}}]}]},
            r"parts of messages\[0\].content must be",
        ),
        (
            {"messages": [{"role": "u", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            r"parts of messages\[0\].content must be",
        ),
        ({"messages": MESSAGES, "prompt": "a"}, "unknown field 'prompt'"),
        (
            {"messages": MESSAGES, "max_tokens": 4, "max_completion_tokens": 5},
            "mean the same, got 4 and 5",
        ),
        ({"messages": MESSAGES, "chat_template_kwargs": [1]}, "must be an object"),
        (
            {"messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": True}},
            "variables that the chat template reads",
        ),
        (
            {"messages": MESSAGES, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            "variables of the template, got 'chat_template'",
        ),
    ],
)
def test_what_a_chat_is_refused_for(ask: Ask, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(**body)


OFF = [
    ("frequency_penalty", 0, 0.5),
    ("presence_penalty", 0.0, 1),
    ("best_of", 1, 2),
    ("tools", [], [{"type": "function"}]),
    ("tool_choice", "none", "required"),
    ("tool_choice", "auto", {"type": "function"}),
    ("functions", [], [{}]),
    ("function_call", "none", "auto"),
    ("guided_grammar", "", "root ::= x"),
    ("structural_tag", "", "{}"),
    ("parallel_tool_calls", False, "yes"),
    ("parallel_tool_calls", True, "yes"),
    ("repetition_penalty", 1.0, 1.1),
    ("min_tokens", 0, 4),
    ("service_tier", "auto", "flex"),
    ("bad_words", [], ["no"]),
    ("priority", 0, 1),
    ("return_token_ids", False, True),
    ("include_reasoning", True, "yes"),
    ("separate_reasoning", True, "yes"),
    ("no_stop_trim", False, True),
    ("service_tier", "default", "priority"),
    ("modalities", ["text"], ["text", "audio"]),
    ("reasoning_effort", "none", "high"),
    ("verbosity", "medium", "low"),
    ("length_penalty", 1.0, 0.8),
    ("use_beam_search", False, True),
    ("spaces_between_special_tokens", True, "yes"),
]


@pytest.mark.parametrize(("field", "off", "on"), OFF)
def test_what_cannot_be_done_is_taken_where_it_is_off(
    ask: Ask, field: str, off: Any, on: Any
) -> None:
    assert ask(**{field: off}).request == ask().request
    assert ask(messages=MESSAGES, **{field: off}).request == ask(messages=MESSAGES).request
    with pytest.raises(
        ValueError,
        match=f"{field} is not supported, got .*: "
        "(leave it out|it is for chats|regular expr|suppress_tokens)",
    ):
        ask(**{field: on})


@pytest.mark.parametrize(
    ("chat", "body", "found"),
    [
        (True, {}, None),
        (True, {"logprobs": None, "top_logprobs": None}, None),
        (True, {"logprobs": False, "top_logprobs": 0}, None),
        (True, {"logprobs": True}, 0),
        (True, {"logprobs": True, "top_logprobs": 0}, 0),
        (True, {"logprobs": 0}, "logprobs must be True or False, got 0"),
        (True, {"logprobs": True, "top_logprobs": 20}, 20),
        (True, {"logprobs": True, "top_logprobs": 21}, "top_logprobs must be an int <= 20, got 21"),
        (True, {"top_logprobs": 2}, "top_logprobs must go with logprobs true, got 2 without"),
        (True, {"logprobs": True, "top_logprobs": "2"}, "top_logprobs must be an int >= 0"),
        (False, {}, None),
        (False, {"logprobs": None}, None),
        (False, {"logprobs": False, "top_logprobs": 0}, None),
        (False, {"logprobs": 0}, 0),
        (False, {"logprobs": 5}, 5),
        (False, {"logprobs": 6}, "logprobs must be an int <= 5, got 6"),
        (False, {"logprobs": True}, "logprobs must be an int >= 0, got True"),
        (False, {"logprobs": 1, "top_logprobs": 1}, "top_logprobs is for chats: logprobs is the"),
    ],
)
def test_log_probabilities_are_asked_for_in_two_ways(
    ask: Ask, chat: bool, body: dict[str, Any], found: Any
) -> None:
    if chat:
        body = {"messages": MESSAGES, **body}
    if isinstance(found, str):
        with pytest.raises(ValueError, match=found):
            ask(**body)
    else:
        asked = ask(**body)
        assert asked.logprobs == found
        assert asked.request.log_probabilities == (found is not None)
        assert asked.request.alternatives == (found or 0)
        assert not asked.request.settings.return_trajectory  # which the engine has to know


def test_echo_is_for_completions_without_log_probabilities(ask: Ask) -> None:
    assert ask(echo=False).request == ask(echo=None).request == ask().request
    assert ask().echoes == ask(echo=False).echoes == ()
    assert ask(prompt=["1+1", "2"], n=2, echo=True).echoes == ("1+1", "1+1", "2", "2")
    assert ask(echo=True).request == ask().request
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"echo": 1}, "echo must be True or False, got 1"),
        ({"echo": True, "logprobs": 0}, "echo must be without logprobs, got both: a masked-diff"),
        ({"echo": True, "messages": MESSAGES}, "echo is not supported, got True: it is for compl"),
    ]
    for body, message in wrong:
        with pytest.raises(ValueError, match=message) as refused:
            ask(**body)
        assert field_of(str(refused.value)) == "echo"
    assert ask(echo=False, messages=MESSAGES) == ask(messages=MESSAGES)


@pytest.mark.parametrize(
    ("field", "off", "on", "reason"),
    [
        ("skip_special_tokens", True, False, "texts are without special tokens"),
        ("skip_special_tokens", True, 0, "texts are without special tokens"),
        ("include_stop_str_in_output", False, True, "what ends a choice is left out"),
        ("stop_token_ids", [], [5], "dlm serve has --stop-ids, for all requests"),
    ],
)
def test_what_happens_anyway_may_be_asked_for(
    ask: Ask, field: str, off: Any, on: Any, reason: str
) -> None:
    assert ask(**{field: off}).request == ask().request
    with pytest.raises(ValueError, match=f"{field} is not supported, got .*: {reason}"):
        ask(**{field: on})


def test_parts_of_a_message_may_say_more_that_is_nothing(ask: Ask) -> None:
    part = {"type": "text", "text": MESSAGES[0]["content"]}
    plain = ask(messages=[{"role": "user", "content": [part]}]).request
    extras: list[dict[str, Any]] = [{"annotations": []}, {"x": None}, {"cache_control": {"a": 1}}]
    for more in extras:
        content = [{**part, **more}]
        assert ask(messages=[{"role": "user", "content": content}]).request == plain
    for wrong in ({"annotations": [1]}, {"text": None}, {"type": "image"}):
        with pytest.raises(ValueError, match=r'must be \{"type": "text"'):
            ask(messages=[{"role": "user", "content": [{**part, **wrong}]}])


def test_ignore_eos_has_another_name(ask: Ask) -> None:
    assert ask(ignore_eos=False).request == ask().request
    with pytest.raises(ValueError, match="ignore_eos is not supported, got True: stop_at_eos"):
        ask(ignore_eos=True)


LABELS: list[tuple[str, Any, Any, str]] = [
    ("user", "me", 5, "a text"),
    ("metadata", {"a": "b"}, "a", "an object"),
    ("store", True, 1, "True or False"),
    ("store", False, "no", "True or False"),
    ("safety_identifier", "me", {}, "a text"),
    ("prompt_cache_key", "k", True, "a text"),
]


@pytest.mark.parametrize(("field", "value", "wrong", "said"), LABELS)
def test_labels_change_nothing(ask: Ask, field: str, value: Any, wrong: Any, said: str) -> None:
    assert ask(**{field: value}) == ask()
    assert ask(messages=MESSAGES, **{field: value}) == ask(messages=MESSAGES)
    with pytest.raises(ValueError, match=f"{field} must be {said}, got "):
        ask(**{field: wrong})


def test_messages_may_say_what_changes_nothing(ask: Ask) -> None:
    expected = ask(messages=MESSAGES)
    for name, value in [("type", "text"), ("type", "message"), ("name", ""), ("tool_calls", [])]:
        assert ask(messages=[{**MESSAGES[0], name: value}]) == expected
    with pytest.raises(ValueError, match=r"messages\[0\].type is not supported, got 'image'"):
        ask(messages=[{**MESSAGES[0], "type": "image"}])


def test_an_assistant_may_have_said_nothing(ask: Ask) -> None:
    empty = {"role": "assistant", "content": ""}
    null = {"role": "assistant", "content": None}
    assert ask(messages=[*MESSAGES, null, *MESSAGES]) == ask(messages=[*MESSAGES, empty, *MESSAGES])
    with pytest.raises(ValueError, match=r"messages\[0\].content must be a text"):
        ask(messages=[{"role": "assistant", "content": 5}])


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"include_obfuscation": False}])
def test_options_of_streams_that_ask_nothing(ask: Ask, options: dict[str, bool]) -> None:
    assert ask(stream_options=options) == ask()
    assert ask(stream=True, stream_options=options) == ask(stream=True)


def test_logit_bias_is_of_few_tokens_and_small(ask: Ask) -> None:
    for given, bias in [({}, ()), ({"7": 0}, ()), ({"7": -100, "3": 0.5}, ((3, 0.5), (7, -100.0)))]:
        assert ask(logit_bias=given).request.settings.biases == bias
        assert ask(messages=MESSAGES, logit_bias=given).request.settings.biases == bias
    assert ask(logit_bias=None).request == ask().request
    assert len(ask(logit_bias={str(i): 1 for i in range(300)}).request.settings.biases) == 300
    for given, message in [
        ([], "logit_bias must map each token id to a number"),
        ({"a": 1}, "logit_bias: each token id must be an int >= 0, got 'a'"),
        ({"768": 1}, "logit_bias: each token id must be an int <= 767, got 768"),
        ({"5": 101}, r"logit_bias\[5\] must be a finite number in \[-100, 100\], got 101"),
        ({"5": "1"}, r"logit_bias\[5\] must be a finite number in \[-100, 100\], got '1'"),
        ({str(i): 1 for i in range(301)}, "logit_bias must be of at most 300 tokens, got 301"),
    ]:
        with pytest.raises(ValueError, match=message) as refused:
            ask(logit_bias=given)
        assert field_of(str(refused.value)) == "logit_bias"


@pytest.mark.parametrize("value", [-1, 0])
def test_top_k_has_other_ways_to_be_off(tiny: Model, value: int) -> None:
    data = b'{"prompt": "a", "max_tokens": 1, "top_k": %d}' % value
    defaults = {"top_k": 5}
    asked = read_request(data, chat=False, model=tiny, name="m", defaults=defaults)
    assert asked.request.settings.top_k is None


def test_best_of_is_off_where_all_are_handed_back(ask: Ask) -> None:
    assert len(ask(n=3, best_of=3).request.rows) == 3
    with pytest.raises(ValueError, match="best_of is not supported, got 1"):
        ask(n=3, best_of=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must be a JSON object"),
        (b"[1]", "must be a JSON object, got list"),
        (b"null", "must be a JSON object, got NoneType"),
        (b'{"prompt": "a"', "must be a JSON object: "),
        (b'{"prompt": "\xff"}', "must be a JSON object: "),
        (b'{"prompt": "a", "temperature": NaN}', "numbers must be finite, got NaN"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature must be a finite number"),
        (b'{"prompt": "a", "n": 1, "n": 2}', "must be there once, got 'n' twice"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "must be a JSON object: "),
    ],
)
def test_bodies_that_are_none(tiny: Model, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_request(data, chat=False, model=tiny, name="m", defaults={})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_new_tokens", "max_tokens says how many are decoded"),
        ("remasking", 'in dlm it is decoder: "low_confidence" or decoder: "random"'),
        ("alg", r'in dlm it is decoder: "dream" with decoder_options: \{"alg": "entropy"\}'),
        ("early_stop", "in dlm it is stop_at_eos: true, which is the default"),
        ("num_return_sequences", "n is the number of choices"),
        ("stop_strings", "stop has texts"),
        ("regex", r'it is structured_outputs: \{"regex": ...\}'),
        ("json_schema", r'it is structured_outputs: \{"json": ...\}, or response_format'),
        ("choice", r'it is structured_outputs: \{"choice": \[...\]\}'),
        ("grammar", "regular expressions and JSON schemas are what there is"),
    ],
)
def test_names_of_other_programs_are_told_what_to_be(ask: Ask, name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"unknown field '{name}': {text}.*Known: begin_"):
        ask(**{name: 1})


def test_fields_that_are_none_are_told_of_no_program() -> None:
    """A client cannot call one, and writes values in JSON."""
    fields = {*names.COMPLETION, *names.CHAT}
    for name, text in names.FOREIGN.items():
        if name not in fields:
            assert not re.search(r"dlm[.]|model[.]|out[.]|row_keys|return_|=|'", text), name


def test_lists_of_names_are_not_cut() -> None:
    known = ", ".join(sorted(names.CHAT))
    assert replies.shortened(f"unknown field 'a'. Known: {known}").endswith(f"'a'. Known: {known}")
    cut = replies.shortened(f"unknown field {'a' * 5000!r}. Known: {known}")
    assert cut.endswith(f"aa'. Known: {known}")
    assert " ... " in cut
    for given in (f"{'a' * 9000}", f"b Known: {'a' * 9000}", f"{'a' * 9000} Known: "):
        assert len(replies.shortened(f"prompt must be a text, got {given!r}")) < 700


def test_decoders_of_other_programs_are_told_what_to_be(ask: Ask) -> None:
    with pytest.raises(ValueError, match="unknown decoder 'EB-Sampler': in dlm it is decoder='ent"):
        ask(decoder="EB-Sampler")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("unknown decoder 'thresold'. Did you mean 'threshold'? Known: ...", "decoder"),
        ("unknown option of low_confidence 'threshold'. Known: none", "decoder_options"),
        ("threshold must be a finite number in [0, 1], got 'a'", "decoder_options"),
        ("unknown alg 'x'. Known: entropy, origin", "decoder_options"),
        ("unknown preset 'x'. Known: reference, paper, safe", "decoder_options"),
        ("unknown cache 'x'. Known: none, prefix, dual", "cache"),
        ("path of schedule must name no file of the server, got '/etc'", "decoder_options"),
        ("a prompt must hold at least one token, got ''", "prompt"),
        ("token ids must be below the vocabulary size 512, got 99999", "prompt"),
        ('parts of messages[0].content must be {"type": "text"}, got {}', "messages"),
        ("messages[1].role must be a text", "messages"),
        ("texts of stop must be at most 1024 characters, got 5000", "stop"),
        ("max_tokens must be an int >= 1, got 0", "max_tokens"),
        ("n must be an int >= 1, got 0", "n"),  # which a decoder has, too
        ("unknown option of stream_options 'x'. Known: include_usage", "stream_options"),
        ("the body must be a JSON object", None),
        ("prompt and generation must fit the model's 512 positions", "prompt"),
    ],
)
def test_the_field_that_is_to_blame_is_found(message: str, field: str | None) -> None:
    assert field_of(message) == field
