"""The HTTP application over an engine that plays a script: what goes wrong, and who leaves."""

import asyncio
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlm.serving import exchange
from dlm.serving.work import Busy, Event, Failed, Grown, Request, Tell

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))

Serve = Callable[..., Any]
KEY = "a secret"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind", "shown"),
    [
        (ValueError("top_k must be even"), 400, "invalid_request_error", "top_k must be even"),
        (KeyError("secret"), 500, "server_error", "the server failed at this request"),
    ],
)
def test_a_failure_before_the_first_token_is_a_status(
    serve: Serve, stream: bool, error: Exception, status: int, kind: str, shown: str
) -> None:
    server = serve(lambda request: iter([Failed(error)]))
    answer = server.ask(stream=stream)
    assert answer.status_code == status
    said = answer.json()["error"]
    assert (said["type"], said["message"]) == (kind, shown)
    assert said["param"] == ("top_k" if status == 400 else None)
    (told,) = server.served
    assert told.status == status
    assert told.error == (shown if status == 400 else "KeyError: 'secret'")


def test_a_failure_later_ends_the_stream(serve: Serve) -> None:
    script = [Grown(0, CASES.ids("1")), Failed(OSError("secret"))]
    server = serve(lambda request: iter(script))
    first, last = server.events()
    assert first["choices"][0]["text"] == "1"
    assert last["error"]["message"] == "the server failed at this request"
    assert (server.served[0].status, server.served[0].completion_tokens) == (500, 1)
    assert server.engine.cancelled == [(1, None)]


@pytest.mark.parametrize(
    ("refusal", "running", "status", "code"),
    [
        (Busy(), True, 429, "queue_full"),
        (RuntimeError("closed"), False, 503, "closed"),
        (RuntimeError("broken"), True, 500, "internal_error"),
        (ValueError("n must be less"), True, 400, None),
    ],
)
def test_what_the_engine_does_not_take(
    serve: Serve, refusal: Exception, running: bool, status: int, code: str | None
) -> None:
    server = serve(CASES.nothing)
    server.engine.refusal, server.engine.running = refusal, running
    answer = server.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("retry-after" in answer.headers) == (status == 429)
    assert [(told.status, told.prompt_tokens) for told in server.served] == [(status, 0)]
    assert server.engine.cancelled == []


@pytest.mark.parametrize("last", [[], [Failed(RuntimeError("closed"))]])
def test_an_engine_that_ends_leaves_nobody_waiting(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, last: list[Event]
) -> None:
    monkeypatch.setattr(exchange, "PULSE", 0.01)

    def play(request: Request) -> Iterator[Event]:
        server.engine.running = False
        yield from last

    server = serve(play)
    answer = server.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "closed")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param", "code"),
    [
        ("POST", "/v1/completions", b"{", 400, None, None),
        ("POST", "/v1/completions", b'{"prompt": "a", "top_p": 3}', 400, "top_p", None),
        (
            "POST", "/v1/completions", b'{"prompt": "a", "model": "b"}', 404, "model",
            "model_not_found",
        ),
        (
            "POST", "/v1/completions",
            b'{"prompt": "a", "decoder_options": {"steps": 1000}}', 400, "decoder_options", None,
        ),
        ("POST", "/v1/chat/completions", b'{"prompt": "a"}', 400, None, None),
        ("POST", "/v1/completions", b'{"prompt": [5]}', 400, "prompt", None),
        (
            "POST", "/v1/chat/completions",
            b'{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"b": 1}}',
            400, "chat_template_kwargs", None,
        ),
        ("GET", "/v1/models/b", None, 404, "model", "model_not_found"),
        ("GET", "/v1/nothing", None, 404, None, None),
        ("GET", "/health/", None, 404, None, None),
        ("POST", "/v1/completions/", None, 404, None, None),
        ("GET", "/v1/completions", None, 405, None, None),
    ],
)  # fmt: skip
def test_errors_have_one_shape(
    serve: Serve, method: str, path: str, body: Any, status: int, param: Any, code: Any
) -> None:
    server = serve(CASES.nothing)
    answer = server.client.request(method, path, content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"]
    asked = status != 405 and body is not None
    assert [told.status for told in server.served] == ([status] if asked else [])
    assert server.engine.requests == []


@pytest.mark.parametrize("length", [600, 60_000])
@pytest.mark.parametrize("more", [{}, {"max_tokens": 4}])
def test_what_is_too_long_is_told_by_its_code(serve: Serve, length: int, more: Any) -> None:
    server, text = serve(CASES.nothing), "7" * length
    chat = server.ask("chat/completions", messages=[{"role": "user", "content": text}], **more)
    rows: list[Any] = [text, ["a", text], [7] * 513, [[7] * 513]]
    answers = [(chat, "messages"), *((server.ask(prompt=row, **more), "prompt") for row in rows)]
    answers += [(server.ask(prompt=[7] * 510, max_tokens=4), "prompt")]
    for answer, param in answers:
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert (error["param"], error["code"]) == (param, "context_length_exceeded")
        assert error["message"].startswith(param)


def test_another_method_is_told_which_there_are(serve: Serve) -> None:
    client = serve(CASES.nothing).client
    assert client.get("/v1/completions").headers["allow"] == "POST"
    answer = client.delete("/v1/models")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_long_message_is_cut_and_any_text_can_be_shown(serve: Serve) -> None:
    server = serve(CASES.nothing)
    body = json.dumps({"prompt": "a", "seed": "\ud800" * 9999}).encode()
    answer = server.client.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert "seed must be an int" in answer.json()["error"]["message"]
    assert len(answer.content) < 2000
    assert server.served[0].error is not None
    assert len(server.served[0].error) < 1000


def test_a_body_has_a_bound(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_BYTES", 1 << 20)
    server = serve(CASES.letters([""]))
    answer = server.ask(user="a" * (1 << 20))
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "a body must be at most 1 MiB"
    assert server.ask(user="a" * (1 << 19)).status_code == 200


@pytest.mark.parametrize("length", [str(exchange.MOST_BYTES + 1), "9" * 5000])
def test_a_body_that_says_that_it_is_too_long_is_not_read(serve: Serve, length: str) -> None:
    server = serve(CASES.nothing)

    async def receive() -> Any:
        raise AssertionError("read")

    async def ask() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
            "headers": [(b"content-length", length.encode())],
        }  # fmt: skip
        await server.client.app(scope, receive, send)
        return sent

    assert asyncio.run(ask())[0]["status"] == 413
    assert [told.error for told in server.served] == ["a body must be at most 4 MiB"]


def test_a_body_has_to_come(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BODY_TIME", 0.01)
    server = serve(CASES.nothing)
    sent = asyncio.run(CASES.leave(server.client.app, {"prompt": "a"}, 9, whole=False))
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"connection"]) == (408, b"close")
    assert b"a body must be there within 0.01 seconds" in sent[1]["body"]
    assert [told.status for told in server.served] == [408]
    assert server.engine.requests == []


def test_only_who_has_the_key_is_served(serve: Serve) -> None:
    server = serve(CASES.letters([""]), api_key=KEY)
    client = server.client
    for header in (None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ", "Bearer \u00e9"):
        headers = {} if header is None else {b"authorization": header.encode()}
        answer = client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert KEY not in answer.text
    assert client.get("/v1/models").status_code == 401
    assert client.get("/nothing").status_code == 401
    assert client.get("/health").status_code == 200
    assert server.engine.requests == []
    good = {"authorization": f"bearer {KEY}"}
    answer = client.post("/v1/completions", json={"prompt": "a"}, headers=good)
    assert answer.status_code == 200
    assert client.get("/v1/models", headers=good).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_a_client_that_goes_away_is_decoded_for_no_longer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, stream: bool, busy: bool
) -> None:
    monkeypatch.setattr(exchange, "PULSE", 0.01)

    def play(request: Request) -> Iterator[Event]:
        yield Grown(0, CASES.ids("1"))
        while not server.engine.given_up.wait(0.001):
            if busy:
                yield Grown(0, CASES.ids("1"))

    server = serve(play)
    body = {"prompt": "a", "stream": stream, "stop": ";"}
    sent = asyncio.run(CASES.leave(server.client.app, body, after=2 if stream else 0))
    assert server.engine.cancelled == [(1, None)]
    (told,) = server.served
    assert (told.status, told.error) == (499, "the client went away")
    assert told.completion_tokens >= stream
    assert sent[0]["status"] == (200 if stream else 499)


def test_a_client_that_goes_away_in_the_middle_of_its_body_asks_for_nothing(serve: Serve) -> None:
    server = serve(CASES.nothing)
    asyncio.run(CASES.leave(server.client.app, {"prompt": "a"}, 0, whole=False))
    assert [told.status for told in server.served] == [499]
    assert server.engine.requests == []


def test_an_engine_may_tell_when_nobody_listens_any_more(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(CASES.letters(["1"]))
    told: list[Tell] = []
    submit = server.engine.submit

    def watched(request: Request, tell: Tell) -> int:
        told.append(tell)
        return int(submit(request, tell))

    monkeypatch.setattr(server.engine, "submit", watched)
    assert server.ask().status_code == 200
    told[0](Grown(0, CASES.ids("1")))  # the loop that listened is closed
