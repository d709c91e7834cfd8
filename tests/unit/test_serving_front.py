"""How a server begins, and what it logs."""

import asyncio
import errno
import logging
import runpy
import socket
import threading
from collections.abc import Iterator
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


class Engine(CASES.Engine):  # type: ignore[misc]
    """One that can be stopped."""

    def stop(self) -> None:
        self.running = False
        self.given_up.set()


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One that answers nothing until it ends."""
    reached = threading.Event()

    def play(request: Request) -> Iterator[Event]:
        reached.set()
        made.given_up.wait(PATIENCE)
        return iter(())

    made = Engine(CASES.tiny(), play)
    made.reached = reached
    yield made
    made.stop()


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
