"""The HTTP application over an engine that plays a script: what it answers."""

import asyncio
import runpy
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlm.serving import exchange
from dlm.serving.answer import Answer
from dlm.serving.app import Served, create_app
from dlm.serving.protocol import read_request
from dlm.serving.work import Ended, Event, Grown, Request

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))

Serve = Callable[..., Any]


def test_a_completion(serve: Serve) -> None:
    server = serve(CASES.letters(["12"]))
    answer = server.ask(model="org/tiny", seed=5)
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("id").startswith("cmpl-")
    assert abs(body.pop("created") - time.time()) < 60
    assert body == {
        "object": "text_completion",
        "model": "org/tiny",
        "seed": 5,
        "choices": [
            {"index": 0, "text": "12", "logprobs": None, "finish_reason": "stop", "forwards": 10}
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 3,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert server.engine.requests[0].settings.seed == 5
    (told,) = server.served
    name = answer.headers["x-request-id"]
    assert replace(told, seconds=0) == Served("/v1/completions", 200, 0, 1, 4, 0, 3, 10, None, name)
    assert 0 < told.seconds < 60


def test_a_chat(serve: Serve) -> None:
    server = serve(CASES.letters(["12", "\u00e9"], stop=False))
    body = server.ask("chat/completions", messages=[{"role": "user", "content": "a"}], n=2).json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": "length",
            "forwards": 10 + index,
        }
        for index, text in enumerate(["12", "\u00e9"])
    ]
    tokens = 2 + len(CASES.ids("\u00e9"))
    assert body["usage"]["completion_tokens"] == tokens
    assert server.served[0].endpoint == "/v1/chat/completions"
    assert (server.served[0].choices, server.served[0].forwards) == (2, 21)


def test_what_is_streamed_is_what_is_answered(serve: Serve) -> None:
    texts = ["1 \u00e9 2", "", "abc"]
    server = serve(CASES.letters(texts))
    events = server.events(n=3)
    assert events[-1] == "[DONE]"
    assert len({event["id"] for event in events[:-1]}) == 1
    assert {event["object"] for event in events[:-1]} == {"text_completion"}
    assert not any("usage" in event for event in events[:-1])
    choices = [event["choices"][0] for event in events[:-1]]
    for index, text in enumerate(texts):
        parts = [choice for choice in choices if choice["index"] == index]
        assert "".join(part["text"] for part in parts) == text
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
        assert parts[-1]["forwards"] == 10 + index
        assert parts[-1]["text"] == ""
    assert len([choice for choice in choices if choice["index"] == 2 and choice["text"]]) > 1
    (told,) = server.served
    assert (told.status, told.choices, told.forwards) == (200, 3, 33)


@pytest.mark.parametrize("prompt", ["2 + 2", CASES.ids("2 + 2")])
def test_a_prompt_may_be_echoed(serve: Serve, prompt: Any) -> None:
    """In front of each choice, and in the first chunk of each; it is not counted twice."""
    server = serve(CASES.letters(["12", "", "3"]))
    body = server.ask(prompt=prompt, n=3, echo=True).json()
    assert [choice["text"] for choice in body["choices"]] == ["2 + 212", "2 + 2", "2 + 23"]
    assert body["usage"] == server.ask(prompt=prompt, n=3).json()["usage"]
    events = server.events(prompt=prompt, n=3, echo=True)[:-1]
    parts: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for event in events:
        parts[event["choices"][0]["index"]].append(event["choices"][0]["text"])
    assert parts == {0: ["2 + 21", "2", ""], 1: ["2 + 2", ""], 2: ["2 + 23", ""]}


def test_a_streamed_chat_begins_with_the_role_and_ends_with_the_usage(serve: Serve) -> None:
    server = serve(CASES.letters(["12", ""]))
    messages = [{"role": "user", "content": "a"}]
    *events, usage, done = server.events(
        "chat/completions", messages=messages, n=2, stream_options={"include_usage": True}
    )
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3 + 1
    assert {event["object"] for event in [*events, usage]} == {"chat.completion.chunk"}
    assert all(event["usage"] is None for event in events)
    deltas: dict[int, list[Any]] = {0: [], 1: []}
    for event in events:
        (choice,) = event["choices"]
        deltas[choice["index"]].append(choice["delta"])
    first = {"role": "assistant", "content": "1"}
    assert deltas[0] == [first, {"content": "2"}, {}]
    assert deltas[1] == [{"role": "assistant", "content": ""}, {}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_its_row_alone(serve: Serve, stream: bool) -> None:
    server = serve(CASES.letters(["1;2", "123"]))
    if stream:
        choices = [event["choices"][0] for event in server.events(n=2, stop=";")[:-1]]
    else:
        choices = server.ask(n=2, stop=";").json()["choices"]
    texts = ["".join(c["text"] for c in choices if c["index"] == index) for index in (0, 1)]
    assert texts == ["1", "123"]
    ends = {c["index"]: c["forwards"] for c in choices if c["finish_reason"] == "stop"}
    assert ends == {0: None, 1: 11}
    assert server.engine.cancelled[0] == (1, 0)
    assert (1, 1) not in server.engine.cancelled
    (told,) = server.served
    assert (told.completion_tokens, told.forwards) == (2 + 4, 11)


def test_forwards_of_a_row_that_was_given_up_are_not_known(serve: Serve) -> None:
    server = serve(CASES.letters(["1;2"]))
    (choice,) = server.ask(stop=";").json()["choices"]
    assert (choice["text"], choice["forwards"]) == ("1", None)
    assert server.served[0].forwards is None


def test_a_stop_text_that_the_last_forward_brought_costs_no_number(serve: Serve) -> None:
    def play(request: Request) -> Iterator[Event]:
        yield Ended(0, CASES.ids("1;2"), decoded=3, forwards=7)

    (choice,) = serve(play).ask(stop=";").json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["forwards"]) == ("1", "stop", 7)


def test_the_one_model_is_listed(serve: Serve) -> None:
    client = serve(CASES.nothing).client
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("org/tiny", "model", "dlm")
    assert model["max_model_len"] == 512
    assert client.get("/v1/models/org/tiny").json() == model
    assert client.get("/v1/models/org%2Ftiny").json() == model


def test_health_says_how_many_rows_there_are(serve: Serve) -> None:
    server = serve(CASES.nothing)
    answer = server.client.get("/health")
    assert (answer.status_code, answer.json()) == (
        200, {"status": "ok", "engines": 1, "decoding": 2, "waiting": 3},
    )  # fmt: skip
    server.engine.running = False
    answer = server.client.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "stopped"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": ""}, "api_key must not be empty"),
        ({"name": ""}, "name of the model must not be empty"),
        ({"defaults": {"temperature": -1}}, "temperature must be"),
        ({"defaults": {"row_keys": [0]}}, "unknown option of a server 'row_keys'"),
    ],
)
def test_what_no_server_is_started_with(
    serve: Serve, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        serve(CASES.nothing, **options)


def test_a_model_without_a_tokenizer_is_not_served() -> None:
    engine = CASES.Engine(replace(CASES.tiny(), tokenizer=None), CASES.nothing)
    with pytest.raises(ValueError, match="must have a tokenizer to be served"):
        create_app(engine, name="m", defaults={})


def test_the_tokenizer_is_set_up_before_requests_come(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(
        type(CASES.tiny().tokenizer), "__call__", lambda self, text: called.append(text)
    )
    serve(CASES.nothing)
    assert called == ["a"]


def test_streams_are_not_kept_by_those_between(serve: Serve) -> None:
    answer = serve(CASES.letters(["1"])).ask(stream=True)
    assert answer.headers["cache-control"] == "no-cache"


def test_texts_are_set_up_beside_the_loop(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def answer(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return Answer(*args)

    monkeypatch.setattr(exchange, "Answer", answer)
    server = serve(CASES.letters(["1"]))

    async def ask() -> str:
        await CASES.leave(server.client.app, {"prompt": "a"}, 9)
        return threading.current_thread().name

    loop = asyncio.run(ask())
    assert len(threads) == 1
    assert threads != [loop]


def test_a_text_is_filled_in_between(serve: Serve) -> None:
    server = serve(CASES.letters(["12"]))
    usage = server.ask(suffix="=4").json()["usage"]
    assert [usage[of] for of in ("prompt_tokens", "completion_tokens")] == [4 + 2, 8]
    assert usage["total_tokens"] == 14
    (request,) = server.engine.requests
    assert request.rows[0][4:] == [5] * 8 + CASES.ids("=4")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "text", "tokens", "reason"),
    [
        ({}, "1", 2, "stop"),
        ({"stop_at_eos": False}, "1", 4, "length"),
        ({"suffix": "=4"}, "123", 4, "length"),
        ({"suffix": "=4", "stop": "2"}, "1", 3, "stop"),
        ({"suffix": "=4", "stop_at_eos": True}, "1", 2, "stop"),
    ],
)
def test_rows_may_go_on_behind_a_stop_token(
    serve: Serve, stream: bool, more: dict[str, Any], text: str, tokens: int, reason: str
) -> None:
    def play(request: Request) -> Iterator[Event]:
        row = [*CASES.ids("1"), CASES.EOS, *CASES.ids("23")]
        yield from (Grown(0, row[at : at + 1]) for at in range(len(row) if request.follow else 0))
        yield Ended(0, row, decoded=4, forwards=4)

    server = serve(play)
    if stream:
        choices = [event["choices"][0] for event in server.events(**more)[:-1]]
    else:
        choices = server.ask(**more).json()["choices"]
    assert "".join(choice["text"] for choice in choices) == text
    assert choices[-1]["finish_reason"] == reason
    assert server.served[0].completion_tokens == tokens


def test_requests_are_read_and_answered_beside_each_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=5)

    def reading(*args: Any, **options: Any) -> Any:
        both.wait()
        return read_request(*args, **options)

    monkeypatch.setattr(exchange, "read_request", reading)

    def play(request: Request) -> Iterator[Event]:
        both.wait()
        yield Ended(0, CASES.ids("7"), decoded=1, forwards=1)

    server = serve(play)

    async def ask_twice() -> list[list[Any]]:
        app, body = server.client.app, {"prompt": "a"}
        return list(await asyncio.gather(CASES.leave(app, body, 9), CASES.leave(app, body, 9)))

    answers = asyncio.run(ask_twice())
    assert [sent[0]["status"] for sent in answers] == [200, 200]
