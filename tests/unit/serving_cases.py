"""An engine that plays a script, a server over it, and clients, for tests of what is served."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from starlette.testclient import TestClient

import dlm
from dlm.models.model import Model
from dlm.serving.app import Served, create_app
from dlm.serving.work import Ended, Event, Grown, Request, Tell

EOS = 1


@dataclass
class Engine:
    """Tells what its script says of each request, from a thread of its own."""

    model: Model
    script: Callable[[Request], Iterator[Event]]
    running: bool = True
    refusal: Exception | None = None
    requests: list[Request] = field(default_factory=list)
    cancelled: list[tuple[int, int | None]] = field(default_factory=list)
    given_up: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def alive(self) -> int:
        return int(self.running)

    def submit(self, request: Request, tell: Tell) -> int:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)

        def play() -> None:
            for event in self.script(request):
                tell(event)

        self.threads.append(threading.Thread(target=play))
        self.threads[-1].start()
        return len(self.requests)

    def cancel(self, ticket: int, row: int | None = None) -> None:
        self.cancelled.append((ticket, row))
        self.given_up.set()

    def load(self) -> tuple[int, int]:
        return 2, 3


@dataclass
class Server:
    """An application over an engine, what was told of its requests, and a client of it."""

    engine: Engine
    client: TestClient
    served: list[Served]

    def ask(self, path: str = "completions", **body: Any) -> Any:
        if path == "completions":
            body.setdefault("prompt", "1+1=")
        return self.client.post(f"/v1/{path}", json=body)

    def events(self, path: str = "completions", **body: Any) -> list[Any]:
        answer = self.ask(path, stream=True, **body)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, rest = answer.text.split("\n\n")
        assert rest == ""
        assert all(event.startswith("data: ") for event in events)
        found = [event.removeprefix("data: ") for event in events]
        return [event if event == "[DONE]" else json.loads(event) for event in found]


@cache
def tiny() -> Model:
    """The built-in model."""
    return dlm.load()


@contextmanager
def servers() -> Iterator[Callable[..., Server]]:
    """Starts servers, each with a script; its threads have to end."""
    made: list[Server] = []

    def start(script: Callable[[Request], Iterator[Event]], **options: Any) -> Server:
        engine = Engine(tiny(), script)
        served: list[Served] = []
        usual: dict[str, Any] = {
            "name": "org/tiny", "defaults": {"gen_length": 8}, "served": served.append,
        }  # fmt: skip
        app = create_app(engine, **(usual | options))
        made.append(Server(engine, TestClient(app), served))
        return made[-1]

    yield start
    for server in made:
        for thread in server.engine.threads:
            thread.join(5)
            assert not thread.is_alive()


def ids(text: str) -> list[int]:
    """Tokens of a text."""
    tokenizer: Any = tiny().tokenizer
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def nothing(request: Request) -> Iterator[Event]:
    """A script that tells nothing."""
    return iter(())


def letters(texts: list[str], stop: bool = True) -> Callable[[Request], Iterator[Event]]:
    """A script that tells the tokens of each row's text one by one, the rows in turn."""

    def play(request: Request) -> Iterator[Event]:
        rows = [[*ids(text), *([EOS] if stop else [])] for text in texts]
        assert len(rows) == len(request.rows)
        if request.follow:
            for place in range(max(map(len, rows))):
                for row, tokens in enumerate(rows):
                    if place < len(tokens):
                        yield Grown(row, tokens[place : place + 1])
        for row, tokens in enumerate(rows):
            length = request.settings.gen_length if stop else len(tokens)
            whole = [*tokens, *[EOS] * (length - len(tokens))]
            yield Ended(row, whole, decoded=len(tokens), forwards=10 + row)

    return play


async def leave(
    app: Any, body: dict[str, Any], after: int, whole: bool = True, sent: list[Any] | None = None
) -> list[Any]:
    """What the application sends to a client that goes away after so many messages."""
    data = json.dumps(body).encode()
    sent = [] if sent is None else sent
    gone = asyncio.Event()
    incoming = [{"type": "http.request", "body": data, "more_body": not whole}]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "headers": [],
        "query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == after:
            gone.set()

    if not after:
        gone.set()
    await asyncio.wait_for(app(scope, receive, send), 10)
    return sent
