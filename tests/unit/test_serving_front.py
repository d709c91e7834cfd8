"""How a server begins, ends at signals, and what it logs meanwhile."""

import asyncio
import errno
import http.client
import json
import logging
import os
import runpy
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from dlm.serving import front
from dlm.serving.app import create_app
from dlm.serving.logs import told_usefully
from dlm.serving.work import Event, Request

CASES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "serving_cases.py")))
PATIENCE = 60.0  # seconds


@pytest.fixture
def engine() -> Iterator[Any]:
    """One that answers nothing until it is stopped."""
    reached = threading.Event()

    def play(request: Request) -> Iterator[Event]:
        reached.set()
        made.given_up.wait(PATIENCE)
        return iter(())

    def stop() -> None:
        made.running = False
        made.given_up.set()

    made = CASES.Engine(CASES.tiny(), play)
    made.reached, made.stop = reached, stop
    yield made
    made.stop()


def post(address: Any, body: bytes, length: int) -> tuple[int, str, Any]:
    """Status, kind and JSON of the answer to a body that may not be all there."""
    host, port = address
    with closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as client:
        client.putrequest("POST", "/v1/completions")
        client.putheader("content-length", str(length))
        client.endheaders(body)
        answer = client.getresponse()
        return answer.status, answer.headers["content-type"], json.load(answer)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("missing", "message"),
    [(0, "the server decodes nothing any more"), (5, "the server ended")],
)
def test_a_second_signal_tells_who_waits(
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    missing: int,
    message: str,
) -> None:
    """Also who has not said all, and with nothing on stderr."""
    monkeypatch.setattr(front, "HASTE", 1.0)
    app = create_app(engine, name="m", defaults={"gen_length": 8})
    body = b'{"prompt": "a"}'
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as pool:
        asked = pool.submit(post, listener.getsockname(), body, len(body) + missing)

        def interrupt() -> None:
            if missing:
                time.sleep(1)
            else:
                engine.reached.wait(PATIENCE)
            for _ in range(2):
                os.kill(os.getpid(), number)
                time.sleep(0.3)

        pool.submit(interrupt)
        front.run_until_signal(app, engine, listener)
        status, kind, said = asked.result()
    assert time.monotonic() - begun < front.GRACE
    assert (status, kind) == (503, "application/json")
    assert (said["error"]["message"], said["error"]["code"]) == (message, "closed")
    assert capfd.readouterr().err == ""


def test_connections_are_kept_for_longer_than_clients_keep_them(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[uvicorn.Config] = []
    monkeypatch.setattr(front.Server, "run", lambda self, sockets: seen.append(self.config))
    app = create_app(engine, name="m", defaults={})
    with socket.socket() as listener:
        front.run_until_signal(app, engine, listener)
    (config,) = seen
    assert (config.timeout_keep_alive, config.backlog) == (75, 128)


def test_a_third_signal_waits_for_nothing(engine: Any) -> None:
    server = front.Server(uvicorn.Config(create_app(engine, name="m", defaults={})), engine)
    calls: list[Any] = []
    server.loop = SimpleNamespace(call_soon_threadsafe=calls.append)  # type: ignore[assignment]
    for ends, hurries, forced in [(True, 0, False), (True, 1, False), (True, 1, True)]:
        server.handle_exit(signal.SIGTERM, None)
        assert (server.should_exit, len(calls), server.force_exit) == (ends, hurries, forced)
    assert calls == [server.hurry]


def test_what_helps_nobody_is_not_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncs, uvicorns = logging.getLogger("asyncio"), logging.getLogger("uvicorn.error")
    times = iter((1.0, 1.0, 2.0, 70.0))
    monkeypatch.setattr("dlm.serving.logs.time", SimpleNamespace(monotonic=lambda: next(times)))
    full = OSError(errno.EMFILE, "Too many open files")
    with told_usefully():
        for _ in range(5):
            asyncs.warning("socket.send() raised exception.")
        uvicorns.error("Exception in ASGI application", exc_info=asyncio.CancelledError())
        for _ in range(4):
            asyncs.error("socket.accept() out of system resource\nsocket: 4", exc_info=full)
        uvicorns.error("Exception in ASGI application", exc_info=KeyError("a"))
    line = "connections wait, as none can be taken now: [Errno 24] Too many open files"
    assert caplog.messages == [line, line, "Exception in ASGI application"]
    assert [record.exc_info is None for record in caplog.records] == [True, True, False]
    asyncs.warning("socket.send() raised exception.")
    assert len(caplog.records) == 4
