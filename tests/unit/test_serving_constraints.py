"""What answers are held to: schemas, expressions, choices and calls, over a real engine."""

import copy
import json
import re
import runpy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

import dlm
from dlm.constraints.constraint import Constraint
from dlm.models.model import Model
from dlm.prompts import tokenizer_of
from dlm.serving.app import create_app
from dlm.serving.constraints import Constraints
from dlm.serving.engine import Engine
from dlm.serving.protocol import read_request
from dlm.serving.rules import LONGEST

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 3}, "hot": {"type": "boolean"}},
    "required": ["city", "hot"],
}
NAMED = {"name": "x", "description": "d", "schema": CITY, "strict": True}
FORMAT = {"type": "json_schema", "json_schema": NAMED}
OBJECT = {"type": "json_object"}
DIGITS = "[0-9]{2,4}"
TEMPLATE = (
    "{% if tools %}<tool_call>{% endif %}"
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "a"}]


def function(name: str, **told: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **told}}


TOOLS = [function("get_weather", parameters=CITY, strict=True), function("now", parameters={})]
ONE = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def model() -> Model:
    """The built-in model, with a template that knows of tools."""
    made = dlm.load()
    tokenizer: Any = copy.deepcopy(made.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return replace(made, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Any]:
    """A server of it."""
    engine = Engine(model, batch_size=8)
    defaults = {"gen_length": 96, "seed": 3, "decoder": "threshold"}
    app = create_app(engine, name="m", defaults=defaults)
    yield CASES.Server(engine, TestClient(app), [])
    engine.close()


def text_of(server: Any, path: str = "completions", **body: Any) -> str:
    if path != "completions":
        body = {"messages": MESSAGES, **body}
    answer = server.ask(path, **body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return str(choice["text"] if path == "completions" else choice["message"]["content"])


def check_city(told: Any) -> None:
    assert list(told) == ["city", "hot"]
    assert isinstance(told["city"], str)
    assert len(told["city"]) <= 3
    assert isinstance(told["hot"], bool)


@pytest.mark.parametrize("body", [
    {"response_format": FORMAT},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": CITY}}},
    {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "strict": False}}},
    {"structured_outputs": {"json": CITY, "regex": None}},
    {"structured_outputs": {"json": json.dumps(CITY)}},
    {"guided_json": CITY},
    {"guided_json": json.dumps(CITY)},
], ids=str)  # fmt: skip
def test_answers_are_json_of_a_schema(server: Any, body: dict[str, Any]) -> None:
    path = "completions" if "response_format" in body else "chat/completions"
    check_city(json.loads(text_of(server, path, max_tokens=48, **body)))


@pytest.mark.parametrize("told", [{"structured_outputs": {"regex": DIGITS}},
                                  {"guided_regex": DIGITS}], ids=str)  # fmt: skip
def test_answers_are_of_an_expression(server: Any, told: dict[str, Any]) -> None:
    for temperature in (0, 2):
        assert re.fullmatch(DIGITS, text_of(server, temperature=temperature, **told))


@pytest.mark.parametrize("told", [{"structured_outputs": {"choice": ["a.b", "(c"]}},
                                  {"guided_choice": ["a.b", "(c"]}], ids=str)  # fmt: skip
def test_answers_are_one_of_some_texts(server: Any, told: dict[str, Any]) -> None:
    assert text_of(server, **told) in ("a.b", "(c")


def test_any_object_is_one(server: Any, model: Model) -> None:
    assert isinstance(json.loads(text_of(server, response_format=OBJECT)), dict)
    made = read(model, response_format=OBJECT).constraint
    assert made == Constraint.json_object(model)
    assert read(model, response_format={"type": "text"}).constraint is None


def test_a_text_that_fills_its_row_is_whole(server: Any) -> None:
    body = {"guided_regex": "[a-f]{3}", "prompt": "Which?", "max_tokens": 3}
    (choice,) = server.ask(**body).json()["choices"]
    assert re.fullmatch("[a-f]{3}", choice["text"])
    assert choice["finish_reason"] == "stop"


def test_every_choice_is_held(server: Any) -> None:
    body = {"guided_regex": DIGITS, "n": 3, "temperature": 1.5, "prompt": ["a", "b"]}
    texts = [choice["text"] for choice in server.ask(**body).json()["choices"]]
    assert len(texts) == 6
    assert all(re.fullmatch(DIGITS, text) for text in texts)


def test_streams_are_held(server: Any) -> None:
    *events, done = server.events(response_format=FORMAT)
    assert done == "[DONE]"
    check_city(json.loads("".join(event["choices"][0]["text"] for event in events)))


def test_requests_at_a_time_are_held_each_to_its_own(server: Any) -> None:
    bodies: list[dict[str, Any]] = [
        {"guided_regex": DIGITS}, {"guided_regex": "[a-f]{3}"}, {}, {"guided_json": CITY},
    ]  # fmt: skip
    alone = [text_of(server, **body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: text_of(server, **body), bodies))
    assert together == alone
    assert re.fullmatch(DIGITS, alone[0])
    assert re.fullmatch("[a-f]{3}", alone[1])
    check_city(json.loads(alone[3]))


def calls_of(server: Any, **body: Any) -> list[str]:
    told = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 72, **body}
    (choice,) = server.ask("chat/completions", **told).json()["choices"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    made = [call["function"] for call in choice["message"]["tool_calls"]]
    for call in made:
        arguments = json.loads(call["arguments"])
        if call["name"] == "get_weather":
            check_city(arguments)
        assert isinstance(arguments, dict)
    return [call["name"] for call in made]


def test_a_named_function_is_called_once(server: Any) -> None:
    assert calls_of(server, tool_choice=ONE, temperature=1.0) == ["get_weather"]


def test_calls_that_are_required_are_made(server: Any) -> None:
    body = {"tool_choice": "required", "tools": [TOOLS[0], function("day", parameters=CITY)]}
    assert set(calls_of(server, **body)) <= {"get_weather", "day"}
    assert len(calls_of(server, parallel_tool_calls=False, temperature=1.0, **body)) == 1


def test_a_stream_has_calls_that_are_required(server: Any) -> None:
    *events, done = server.events(
        "chat/completions", messages=MESSAGES, tools=TOOLS, tool_choice=ONE
    )
    assert done == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in events]
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", ())]
    check_city(json.loads(call["function"]["arguments"]))
    assert not any(delta.get("content") for delta in deltas)


KEPT = Constraints()


def read(model: Model, **body: Any) -> Any:
    """The settings of a request."""
    chat = "messages" in body
    data = json.dumps(body if chat else {"prompt": "a", **body}).encode()
    asked = read_request(
        data, chat=chat, model=model, name="m", defaults={"gen_length": 96}, constraints=KEPT
    )
    return asked.request.settings


def takes(model: Model, made: Constraint, text: str) -> bool:
    """Whether a text is of the form."""
    automaton, tokenizer = made.automaton, tokenizer_of(model, "a test")
    state = automaton.start
    for token in tokenizer.encode(text, add_special_tokens=False):
        state = int(automaton.following[state, automaton.class_of[token]])
    return int(automaton.left[state]) == 0


CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'


@pytest.mark.parametrize(("several", "count", "taken"), [
    (True, 1, True), (True, 2, True), (False, 1, True), (False, 2, False), (True, 0, False),
], ids=str)  # fmt: skip
def test_the_form_of_calls(model: Model, several: bool, count: int, taken: bool) -> None:
    told = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
    made = read(model, parallel_tool_calls=several, **told).constraint
    calls = [
        CALL % ("now", '{"a": {"b": 1}, "c": [2, "d"]}'),
        CALL % ("get_weather", '{"city": "x", "hot":true}'),
    ]
    assert takes(model, made, "\n".join(calls[:count])) == taken
    assert not takes(model, made, calls[0].replace("now", "how"))
    assert not takes(model, made, calls[1].replace("city", "town"))


@pytest.mark.parametrize(
    "parameters", [None, {}, {"type": "object"}, {"description": "d"}], ids=str
)
def test_functions_that_say_nothing_of_their_arguments_take_any(
    model: Model, parameters: Any
) -> None:
    tools = [function("f", parameters=parameters)]
    made = read(model, messages=MESSAGES, tools=tools, tool_choice="required").constraint
    for arguments in ("{}", '{"a": {"b": "c"}, "d": [1.5, null]}'):
        assert takes(model, made, CALL % ("f", arguments))
    assert not takes(model, made, CALL % ("f", "5"))


def test_functions_may_be_called_freely_and_strict_ones_not_at_all(model: Model) -> None:
    free = {"messages": MESSAGES, "tools": TOOLS[1:]}
    assert read(model, **free).constraint is None
    assert read(model, messages=MESSAGES, tools=TOOLS, tool_choice="none").constraint is None


LONG = "a" * (LONGEST + 1)
DEEP: Any = {}
for _ in range(700):
    DEEP = {"a": DEEP}
FREE = {"messages": MESSAGES, "tools": TOOLS[1:]}
HELD = {**FREE, "tool_choice": "required"}
LOOK = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)"}}}

REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"response_format": 3}, "response_format", "must be an object, got 3"),
    ({"response_format": {}}, "response_format", "type must be one of text, json_object, json"),
    ({"response_format": {"type": "structural_tag"}}, "response_format", "regular expressions and"),
    ({"response_format": {"type": "text", "typ": 1}}, "response_format", "Did you mean 'type'"),
    ({"response_format": {**FORMAT, "type": "text"}}, "response_format", "must go with type"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema must be an obj"),
    ({"response_format": {**FORMAT, "json_schema": {"name": "x"}}}, "response_format",
     "response_format.json_schema.schema must be an object, got None"),
    ({"response_format": {**FORMAT, "json_schema": {**NAMED, "name": 3}}}, "response_format",
     "response_format.json_schema.name must be a text"),
    ({"response_format": {**FORMAT, "json_schema": {**NAMED, "strict": 3}}}, "response_format",
     "response_format.json_schema.strict must be True or False"),
    ({"response_format": {**FORMAT, "json_schema": {**NAMED, "shema": 3}}}, "response_format",
     "Did you mean 'schema'"),
    ({"response_format": {**FORMAT, "json_schema": {"schema": {"type": "x"}}}}, "response_format",
     "response_format.json_schema.schema must be one that can be followed"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one of json, regex, choice"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "got json, regex"),
    ({"structured_outputs": {"grammar": "a"}}, "structured_outputs", "regular expressions"),
    ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs", "is not supported"),
    ({"structured_outputs": {"regx": "a"}}, "structured_outputs", "Did you mean 'regex'"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs",
     "structured_outputs.regex must be a regular expression of Rust's syntax"),
    ({"guided_grammar": "a"}, "guided_grammar", "regular expressions and JSON schemas are what"),
    ({"guided_regex": 3}, "guided_regex", "guided_regex must be a regular expression, got 3"),
    ({"guided_regex": "(?=a)"}, "guided_regex", "guided_regex must be a regular expression of"),
    ({"guided_regex": LONG}, "guided_regex", f"at most {LONGEST} characters, got {LONGEST + 1}"),
    ({"guided_regex": r"[a&&b]"}, "guided_regex", "guided_regex must"),
    ({"guided_json": 3}, "guided_json", "guided_json must be a JSON schema or the text of one"),
    ({"guided_json": "{"}, "guided_json", "guided_json must be one that can be followed"),
    ({"guided_json": {"a": LONG}}, "guided_json", f"guided_json must be at most {LONGEST} chara"),
    ({"guided_json": DEEP}, "guided_json", "guided_json must be"),
    ({"guided_choice": "a"}, "guided_choice", "must be a list of 1 to 1000 texts, got 'a'"),
    ({"guided_choice": []}, "guided_choice", "must be a list of 1 to 1000 texts, got"),
    ({"guided_choice": ["a", 3]}, "guided_choice", "must be a list of 1 to 1000 texts, got"),
    ({"guided_choice": ["a"] * 1001}, "guided_choice", "got 1001 of them"),
    ({"guided_choice": ["a", LONG]}, "guided_choice", f"must be at most {LONGEST} characters"),
    ({"guided_choice": ["a"], "response_format": FORMAT}, "response_format",
     "response_format must stand without guided_choice"),
    ({"guided_choice": ["a"], "structured_outputs": {"regex": "a"}}, "structured_outputs",
     "structured_outputs must stand without guided_choice"),
    ({**HELD, "response_format": FORMAT}, "response_format", "must stand without tool_choice"),
    ({"guided_choice": ["a"], "suffix": "b"}, "guided_choice", "must stand without suffix"),
    ({"guided_choice": ["a"], "confidence_eos_eot_inf": True}, "confidence_eos_eot_inf", "be off"),
    ({"guided_regex": "[0-9]{9}", "max_tokens": 3}, "max_tokens",
     "max_tokens must hold a text of the constraint, got 3 tokens"),
    ({**HELD, "max_completion_tokens": 3}, "max_completion_tokens", "must hold a text of the"),
    ({"guided_regex": "a", "suppress_tokens": [1, 4]}, "suppress_tokens", "leave a stop token"),
    ({**FREE, "tools": TOOLS}, "tools", "with tool_choice 'auto' nothing holds"),
    ({"messages": MESSAGES, "tool_choice": "required"}, "tool_choice", "of a function in tools"),
    ({**FREE, "tool_choice": ONE}, "tool_choice", "tool_choice must be of a function in tools"),
    ({**FREE, "tool_choice": {"type": "custom"}}, "tool_choice", "must be 'auto', 'none', 'requi"),
    ({**HELD, "tools": [function("f", parameters={"type": "array"})]}, "tools",
     "tools[0].function.parameters must be of type 'object', got 'array'"),
    ({**HELD, "tools": [TOOLS[0], function("f", parameters=LOOK)]}, "tools",
     "tools[1].function.parameters must be"),
    ({**HELD, "tools": [function("f", parameters={"a": LONG})]}, "tools", "tools must be at most"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_refused(server: Any, body: dict[str, Any], param: str, message: str) -> None:
    answer = server.ask("chat/completions" if "messages" in body else "completions", **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
