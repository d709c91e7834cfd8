"""Functions that a chat may call: what is said of them, and calls in answers."""

import copy
import json
import random
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dlm
from dlm.models.model import Model
from dlm.serving.answer import Answer
from dlm.serving.protocol import Asked, read_request
from dlm.serving.replies import Writer
from dlm.serving.tools import Called, CallReader
from dlm.serving.work import Ended, Grown

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# As Qwen's and LLaDA2's, but for the words.
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool['function']['name'] }};{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}"
    "{% for call in m['tool_calls'] %}<tool_call>{{ call['function']['name'] }}"
    "{{ call['function']['arguments']['city'] }}</tool_call>{% endfor %};{% endfor %}"
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def model() -> Model:
    """The built-in model, with a template that knows of tools."""
    made = dlm.load()
    tokenizer: Any = copy.deepcopy(made.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return replace(made, tokenizer=tokenizer)


def asked(model: Model, chat: bool = True, **body: Any) -> Asked:
    usual: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
    given = {"max_tokens": 8, **(usual if chat else {"prompt": "a"}), **body}
    data = json.dumps(given).encode()
    return read_request(data, chat=chat, model=model, name="m", defaults={})


def prompt(model: Model, **body: Any) -> list[int]:
    return asked(model, **body).request.rows[0][:-8]


def ids(model: Model, text: str) -> list[int]:
    tokenizer: Any = model.tokenizer
    return list(tokenizer(text)["input_ids"])


def test_the_template_is_told_of_them(model: Model) -> None:
    assert prompt(model, tools=[WEATHER]) == ids(model, "get_weather;user:a;")
    off: list[dict[str, Any]] = [
        {}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"},
    ]  # fmt: skip
    for nothing in off:
        assert prompt(model, **nothing) == ids(model, "user:a;")
        assert asked(model, **nothing).tools is None
    both: dict[str, Any] = {"tools": [WEATHER], "chat_template_kwargs": {"tools": []}}
    with pytest.raises(ValueError, match="not be in chat_template_kwargs as well"):
        asked(model, **both)


def test_calls_and_their_results_are_messages(model: Model) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"city": "P"}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "12"},
    ]
    expected = "user:a;assistant:<tool_call>fP</tool_call>;tool:12;"
    assert prompt(model, messages=messages) == ids(model, expected)
    made: Any = copy.deepcopy(messages)
    made[1]["tool_calls"][0]["function"]["arguments"] = {"city": "P"}
    assert dlm.encode_prompts(model, made) == [ids(model, expected)]


@pytest.mark.parametrize(("body", "message"), [
    ({"tools": "f"}, "tools must be a list of at most 128 functions, got 'f'"),
    ({"tools": [WEATHER] * 129}, "tools must be a list of at most 128 functions"),
    ({"tools": [WEATHER] * 2}, r"tools\[1\].function.name must be of one function, got "),
    ({"tools": [{"type": "retrieval"}]}, r'tools\[0\] must be {"type": "function"'),
    ({"tools": [{"type": "function"}]}, r"tools\[0\].function must be an object with a name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "must be 1 to 64 letters"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}]}, "an object"),
    ({"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]}, "True or False"),
    ({"tools": [WEATHER], "tool_choice": "any"}, "must be 'auto', 'none', 'required' or"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "or {.type.: .function."),
    ({"parallel_tool_calls": 3}, "parallel_tool_calls must be True or False"),
], ids=str)  # fmt: skip
def test_what_they_must_be(model: Model, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(model, **body)


@pytest.mark.parametrize(("call", "message"), [
    ("f", "tool_calls must be a list of calls"),
    ([{"function": {}}], "must have a function with a name"),
    ([{"function": {"name": "f", "arguments": "city"}}], "the text of a JSON object, got 'city'"),
    ([{"function": {"name": "f", "arguments": "[1]"}}], "the text of a JSON object"),
    ([{"function": {"name": "f", "arguments": '{"x": NaN}'}}], "the text of a JSON object"),
], ids=str)  # fmt: skip
def test_what_earlier_calls_must_be(model: Model, call: Any, message: str) -> None:
    said = {"role": "assistant", "content": "", "tool_calls": call}
    with pytest.raises(ValueError, match=message):
        asked(model, messages=[said, {"role": "user", "content": "a"}])


def test_what_is_nested_deep_is_the_request_s(model: Model) -> None:
    deep: Any = {}
    for _ in range(700):
        deep = {"a": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    with pytest.raises(ValueError, match="messages must fit the model's chat template"):
        asked(model, tools=[tool])


def test_completions_have_none(model: Model) -> None:
    with pytest.raises(ValueError, match=r"tools is not supported, .*: it is for chats"):
        asked(model, chat=False, tools=[WEATHER])
    asked(model, chat=False, tools=[], tool_choice="auto")


@pytest.mark.parametrize("template", [
    "{{ messages[0]['content'] }}{{ tools }}",
    "{{ messages[0]['content'] }}{{ tools }}<tool_call><function=f></function></tool_call>",
], ids=["none", "other"])  # fmt: skip
def test_a_template_without_such_calls_is_none_for_them(model: Model, template: str) -> None:
    tokenizer: Any = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="tools must go with a chat template that has calls as"):
        asked(replace(model, tokenizer=tokenizer), tools=[WEATHER])
    call = {"function": {"name": "f", "arguments": "{}"}}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    with pytest.raises(ValueError, match="tools must go with a chat template that has calls as"):
        asked(replace(model, tokenizer=tokenizer), messages=[said, {"role": "tool", "content": ""}])


def read(text: str, pieces: int = 1, several: bool = True) -> tuple[str, list[Called]]:
    """What is made of a text that comes in pieces."""
    reader, said, calls = CallReader(several=several), "", []
    cuts = sorted(random.Random(pieces).choices(range(len(text) + 1), k=pieces - 1))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for number, part in enumerate(parts):
        more, made = reader.push(part, over=number == len(parts) - 1)
        said += more
        calls += made
    return said, calls


@pytest.mark.parametrize(("text", "said", "names"), [
    ("no call", "no call", []),
    (" a <tool> < b <tool_cal\n", " a <tool> < b <tool_cal\n", []),
    (CALL, "", ["get_weather"]),
    (f"Let me see.\n{CALL}\n", "Let me see.", ["get_weather"]),
    (f"{CALL}\n{OTHER}", "", ["get_weather", "get_time"]),
    (f"a\n\n{CALL}\n b {OTHER} c \n", "a\n b c", ["get_weather", "get_time"]),
    (f"{CALL[:-12]}", "", ["get_weather"]),  # as where a stop token comes early
    (f"{CALL[:-12]}{OTHER}", "", ["get_weather", "get_time"]),  # the end was forgotten
    (f"<tool_call>\n{OTHER}", "<tool_call>\n", ["get_time"]),
    ('<tool_call>{"name": "f", "arguments": {"x": NaN}}', "same", []),  # which JSON has not
    ('<tool_call>{"name": "f", "arguments": {"x": 1e999}}', "same", []),
    ('<tool_call>{"name": ""}</tool_call>', "same", []),
    ("<tool_call>" + "[" * 9999, "same", []),
    ("<tool_call>{1}</tool_call> x", "<tool_call>{1}</tool_call> x", []),
    ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
    ('<tool_call>{"name": "f", "arguments": 3}', '<tool_call>{"name": "f", "arguments": 3}', []),
    (f" <tool_call>[]</tool_call>\n{OTHER}", " <tool_call>[]</tool_call>", ["get_time"]),
], ids=str)  # fmt: skip
def test_calls_are_taken_out(text: str, said: str, names: list[str]) -> None:
    """However the text comes."""
    for pieces in (1, 2, 3, 7, 40, 200):
        found, calls = read(text, pieces)
        expected = text if said == "same" else said
        assert (found, [call.name for call in calls]) == (expected, names), pieces
        assert [call.number for call in calls] == list(range(len(names)))
    assert len({call.id for call in calls}) == len(calls)


def test_one_may_be_enough() -> None:
    for pieces in (1, 5, 90):
        said, (call,) = read(f"a {CALL} b {OTHER} c", pieces, several=False)
        assert (said, call.name, call.arguments) == ("a", "get_weather", '{"city": "Paris"}')


def test_text_that_is_no_call_is_not_held_up() -> None:
    reader = CallReader(several=True)
    assert reader.push("a < b", over=False) == ("a < b", [])
    assert reader.push(" <to", over=False) == ("", [])
    assert reader.push("e>", over=False) == (" <toe>", [])
    assert reader.push("\n", over=False) == ("", [])
    assert reader.push("c", over=False) == ("\nc", [])


@pytest.fixture
def answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """An answer whose choices have these letters, whatever the tokenizer."""
    monkeypatch.setattr("dlm.reading.whole_text", lambda model, tokens: "".join(map(chr, tokens)))
    spec = replace(model.spec, stop_ids=(0,))

    def make(**body: Any) -> Answer:
        return Answer(replace(model, spec=spec), asked(model, tools=[WEATHER], **body))

    return make


def told(text: str, follow: int) -> Iterator[Grown | Ended]:
    """A row of a text and a stop token, `follow` tokens at a time, or at once for 0."""
    row = [*map(ord, text), 0]
    yield from (Grown(0, row[at : at + follow]) for at in range(0, len(row) - 1, follow or 999))
    yield Ended(0, row, len(row), 3)


def test_an_answer_has_them(answer: Callable[..., Answer]) -> None:
    made = answer()
    *_, end = told(f"Well.\n{CALL}", 0)
    made.take(end)
    (choice,) = Writer(made, "m").whole()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["role"], message["content"]) == ("assistant", "Well.")
    (call,) = message["tool_calls"]
    assert call == {
        "id": call["id"],
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_stream_has_them(answer: Callable[..., Answer], size: int) -> None:
    made = answer(stream=True)
    writer, deltas, ends = Writer(made, "m"), [], []
    for event in told(f"Well.\n{CALL}\n{OTHER}", size):
        piece = made.take(event)
        for chunk in () if piece is None else writer.chunks(piece):
            deltas.append(chunk["choices"][0]["delta"])
            ends.append(chunk["choices"][0]["finish_reason"])
    assert "".join(delta.get("content") or "" for delta in deltas) == "Well."
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [
        (0, "get_weather"),
        (1, "get_time"),
    ]
    assert ends[-1] == "tool_calls"
    assert set(ends[:-1]) == {None}


def test_no_text_beside_a_call_is_null(answer: Callable[..., Answer]) -> None:
    made = answer()
    *_, end = told(CALL, 0)
    made.take(end)
    (choice,) = Writer(made, "m").whole()["choices"]
    assert choice["message"]["content"] is None
    assert len(choice["message"]["tool_calls"]) == 1


def test_one_without_calls_is_as_ever(answer: Callable[..., Answer]) -> None:
    made = answer()
    *_, end = told("Well. ", 0)
    made.take(end)
    (choice,) = Writer(made, "m").whole()["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Well. "}
    assert choice["finish_reason"] == "stop"


def test_a_call_that_is_cut_off_is_text(answer: Callable[..., Answer]) -> None:
    made = answer()
    row = list(map(ord, CALL[:30]))
    made.take(Ended(0, row, len(row), 3))
    (choice,) = Writer(made, "m").whole()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL[:30], "length")
