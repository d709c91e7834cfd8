"""Requests over an engine that plays a script: how they end, and what is said meanwhile."""

import asyncio
import json
import logging
import runpy
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request as HttpRequest

from dlm.serving import exchange
from dlm.serving.exchange import Exchange, Service
from dlm.serving.refusals import Closed
from dlm.serving.work import Ended, Event, Failed, Grown, Request

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))

Serve = Callable[..., Any]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_hears_of_is_an_answer(
    serve: Serve, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    def broken(served: Any) -> None:
        raise OSError("no room on the disk")

    server = serve(CASES.letters(["12"]), served=broken)
    with caplog.at_level(logging.ERROR, logger="dlm.serving"):
        if stream:
            assert server.events()[-1] == "[DONE]"
        else:
            assert server.ask().json()["choices"][0]["text"] == "12"
        assert server.ask(n=0).status_code == 400
    assert server.engine.cancelled[0] == (1, None)
    first, second = caplog.records
    assert first.getMessage() == "/v1/completions was answered with 200, but not told of"
    assert second.getMessage() == "/v1/completions was answered with 400, but not told of"
    assert first.exc_info is not None
    assert isinstance(first.exc_info[1], OSError)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_ends_says_so(serve: Serve, stream: bool) -> None:
    def play(request: Request) -> Iterator[Event]:
        yield Grown(0, CASES.ids("1"))
        server.engine.given_up.wait(5)

    server = serve(play)
    body = {"prompt": "a", "stream": stream, "stop": ";"}

    async def end() -> None:
        sent: list[Any] = []
        asked = asyncio.create_task(CASES.leave(server.client.app, body, 99, sent=sent))
        while not server.engine.requests or (stream and len(sent) < 2):
            await asyncio.sleep(0.001)
        asked.cancel()
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout(60):
                await asked
        assert sent[0]["status"] == (200 if stream else 503)
        assert stream or b'"message":"the server ended"' in sent[1]["body"]

    asyncio.run(end())
    (told,) = server.served
    assert (told.status, told.error) == (503, "the server ended")
    assert server.engine.cancelled == [(1, None)]


def test_an_answer_that_is_whole_is_no_less_so_when_the_server_ends(serve: Serve) -> None:
    server = serve(CASES.nothing)
    made = exchange_over(server)
    made.status, made.error = 200, None
    made.cut()
    assert (made.status, made.error) == (200, None)


def exchange_over(server: Any) -> Exchange:
    """A request that has not been read."""
    service = Service(server.engine, "m", {}, server.served.append)
    return Exchange(service, HttpRequest({"type": "http"}), "/v1/completions", chat=False)


def test_what_an_engine_told_before_it_ended_is_heard(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "PULSE", 0.001)
    server = serve(CASES.nothing)
    server.engine.running = False

    async def hear() -> None:
        made = exchange_over(server)
        event = Ended(0, CASES.ids("1"), decoded=1, forwards=1)
        made.events.put_nowait(event)
        made.looked = 0.0
        assert await made.next(look=False) is event
        with pytest.raises(Closed):
            await made.next(look=False)

    asyncio.run(hear())


def test_no_cancellation_is_lost_to_an_event_of_the_same_moment(serve: Serve) -> None:
    server = serve(CASES.nothing)

    async def race() -> None:
        made = exchange_over(server)
        asked = asyncio.create_task(made.next(look=False))
        await asyncio.sleep(0.01)
        made.events.put_nowait(Ended(0, [], decoded=0, forwards=1))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(race())


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("ending", ["a text", "a refusal"])
def test_a_stream_that_waits_says_so(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, ending: str, later: bool
) -> None:
    monkeypatch.setattr(exchange, "PULSE", 0.002)
    monkeypatch.setattr(exchange, "QUIET", 0.01)
    sent: list[Any] = []

    def play(request: Request) -> Iterator[Event]:
        if later:
            yield Grown(0, CASES.ids("1"))
        while sum(message.get("body") == exchange.WAITING for message in list(sent)) < 2:
            if server.engine.given_up.wait(0.001):
                return
        last = Ended(0, CASES.ids("12"), decoded=2, forwards=2)
        yield last if ending == "a text" else Failed(ValueError("top_k must be even"))

    server = serve(play)
    asyncio.run(CASES.leave(server.client.app, {"prompt": "a", "stream": True}, 999, sent=sent))
    assert sent[0]["status"] == 200
    bodies = [message["body"] for message in sent[1:]]
    told = [body for body in bodies if body != b": waiting\n\n"]
    assert len(bodies) - len(told) >= 2
    assert bodies.index(b": waiting\n\n") == later
    (record,) = server.served
    if ending == "a text":
        assert told[-2:] == [b"data: [DONE]\n\n", b""]
        texts = [json.loads(body[6:])["choices"][0]["text"] for body in told[:-2]]
        assert "".join(texts) == "12"
        assert record.status == 200
    else:
        error = json.loads(told[-2][6:])["error"]
        assert (error["message"], error["param"]) == ("top_k must be even", "top_k")
        assert (record.status, record.error) == (400, "top_k must be even")


def test_a_stream_without_a_text_says_that_it_goes_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where forwards come one after the other and settle nothing, too; and no text is no first."""
    monkeypatch.setattr(exchange, "QUIET", 0.02)
    sent: list[Any] = []

    def play(request: Request) -> Iterator[Event]:
        while sum(message.get("body") == exchange.WAITING for message in list(sent)) < 2:
            yield Grown(0, [])
            if server.engine.given_up.wait(0.001):
                return
        yield Ended(0, [], decoded=0, forwards=2)

    server = serve(play)
    asyncio.run(CASES.leave(server.client.app, {"prompt": "a", "stream": True}, 999, sent=sent))
    assert [message.get("body") for message in sent[1:3]] == [exchange.WAITING] * 2
    (record,) = server.served
    assert (record.status, record.first_seconds) == (200, None)


def test_events_without_a_text_put_no_comment_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One every 0.19 s, where a comment is due after 0.2 s: not after the second one, at 0.38 s."""
    monkeypatch.setattr(exchange, "PULSE", 0.01)
    monkeypatch.setattr(exchange, "QUIET", 0.2)
    sent: list[Any] = []

    def play(request: Request) -> Iterator[Event]:
        for _ in range(6):
            if server.engine.given_up.wait(0.19):
                return
            yield Grown(0, [])
        yield Ended(0, [], decoded=0, forwards=2)

    server = serve(play)
    asyncio.run(CASES.leave(server.client.app, {"prompt": "a", "stream": True}, 999, sent=sent))
    assert sum(message.get("body") == exchange.WAITING for message in sent) >= 4


def test_an_answer_in_one_piece_waits_in_silence(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "PULSE", 0.002)
    monkeypatch.setattr(exchange, "QUIET", 0.004)

    def play(request: Request) -> Iterator[Event]:
        server.engine.given_up.wait(0.05)
        yield Ended(0, CASES.ids("12"), decoded=2, forwards=2)

    server = serve(play)
    assert server.ask().json()["choices"][0]["text"] == "12"
