"""Fields that are no field here, or not what they should be, and bodies that are none."""

import json
from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm.models.model import Model
from dlm.serving.protocol import Asked, read_request

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
        return read_request(data, chat=chat, model=tiny, name="m", defaults={"gen_length": 16})

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
        ({"messages": [{"role": "u", "content": "a", "name": "b"}]}, "name is not supported"),
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
    ("logit_bias", {}, {"5": 1}),
    ("logprobs", False, True),
    ("logprobs", None, 0),
    ("top_logprobs", 0, 2),
    ("echo", False, True),
    ("best_of", 1, 2),
    ("suffix", None, "b"),
    ("tools", [], [{"type": "function"}]),
    ("tool_choice", "none", "auto"),
    ("functions", [], [{}]),
    ("function_call", "none", "auto"),
    ("response_format", {"type": "text"}, {"type": "json_object"}),
    ("parallel_tool_calls", False, True),
    ("repetition_penalty", 1.0, 1.1),
    ("store", False, True),
]


@pytest.mark.parametrize(("field", "off", "on"), OFF)
def test_what_cannot_be_done_is_taken_where_it_is_off(
    ask: Ask, field: str, off: Any, on: Any
) -> None:
    assert ask(**{field: off}).request == ask().request
    assert ask(messages=MESSAGES, **{field: off}).request == ask(messages=MESSAGES).request
    with pytest.raises(ValueError, match=f"{field} is not supported, got .*: leave it out"):
        ask(**{field: on})


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
