"""How a server begins."""

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
    assert config.timeout_keep_alive == 75
