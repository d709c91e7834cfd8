"""Who asks an engine, and a network that waits, for tests of what is served."""

import threading
from collections.abc import Callable
from typing import Any

import dlm
from dlm.job import continued
from dlm.models.model import Model
from dlm.serving.engine import Engine
from dlm.serving.work import Ended, Event, Failed, Grown, Request, Reused
from dlm.settings import Settings

PATIENCE = 60.0  # seconds
USUAL: dict[str, Any] = {"gen_length": 10, "block_length": 4, "temperature": 0.8}


class Client:
    """Asks for rows and keeps what it is told of them."""

    def __init__(
        self, model: Model, prompts: list[list[int]], follow: bool = False, **options: Any
    ):
        self.model = model
        self.prompts = prompts
        self.options = {**USUAL, "row_keys": tuple(range(len(prompts))), **options}
        settings = Settings(**self.options)
        rows, spans = continued(model, prompts, [settings.gen_length] * len(prompts))
        self.request = Request(rows, spans, settings, follow)
        self.grown: dict[int, list[int]] = {row: [] for row in range(len(rows))}
        self.reused: dict[int, int] = {}
        self.ends: dict[int, Ended] = {}
        self.error: Exception | None = None
        self.wrongs: list[AssertionError] = []
        self.over = threading.Event()
        self.first = threading.Event()
        self.heard: Callable[[], None] = lambda: None

    def tell(self, event: Event) -> None:
        try:
            self.hear(event)
        except AssertionError as wrong:  # which the engine would take for deafness
            self.wrongs.append(wrong)

    def hear(self, event: Event) -> None:
        assert self.error is None
        self.first.set()
        if isinstance(event, Grown):
            assert event.row not in self.ends
            assert event.tokens
            self.grown[event.row] += event.tokens
        elif isinstance(event, Ended):
            assert event.row not in self.ends
            self.ends[event.row] = event
        elif isinstance(event, Reused):
            assert event.row not in self.reused
            assert not self.grown[event.row]
            self.reused[event.row] = event.tokens
        else:
            self.error = event.error
        if isinstance(event, Failed) or len(self.ends) == len(self.prompts):
            self.over.set()
        self.heard()

    def ask(self, engine: Engine) -> "Client":
        self.ticket = engine.submit(self.request, self.tell)
        return self

    def wait(self) -> "Client":
        assert self.over.wait(PATIENCE)
        return self

    def check(self) -> None:
        """All is as it should be."""
        self.wait()
        assert not self.wrongs
        assert self.error is None
        expected = dlm.generate(self.model, self.prompts, **self.options)
        for row, end in self.ends.items():
            assert end.tokens == expected.tokens[row]
            assert end.forwards == expected.forwards[row]
            assert end.decoded == expected.decoded[row]
            assert end.tokens[: len(self.grown[row])] == self.grown[row]


class Gated:
    """A network whose forwards wait for a gate, and fail on demand."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.gate = threading.Event()
        self.reached = threading.Event()
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def states(self, *args: Any, **more: Any) -> Any:
        self.reached.set()
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return self.network.states(*args, **more)
