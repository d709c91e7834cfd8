"""Runs the application until a signal ends it."""

import asyncio
import signal
import socket
from contextlib import suppress
from types import FrameType
from typing import Final

import uvicorn
from starlette.applications import Starlette

from dlm.serving.engine import Engine
from dlm.serving.logs import told_usefully
from dlm.serving.replicas import Replicas

GRACE: Final = 30.0
"""Seconds for requests in progress to be answered once the server ends."""
LEEWAY: Final = 5
"""Further seconds, for telling the remaining clients that the server ended."""
HASTE: Final = 2.0
"""Seconds for the same after a second signal."""
KEEP_ALIVE: Final = 75
"""Seconds without a request after which a connection is closed. Longer than clients and proxies
keep theirs, as they would otherwise write to one that is just being closed."""
BACKLOG: Final = 128
"""Connections that may wait to be accepted. If no file descriptor is left, asyncio tries this many
times in a row, and logs each."""


class Server(uvicorn.Server):
    """A server that stops the engine if answers take too long to end."""

    def __init__(self, config: uvicorn.Config, engine: Engine | Replicas) -> None:
        super().__init__(config)
        self.engine = engine
        self.loop: asyncio.AbstractEventLoop | None = None
        self.hurries = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new requests, and wait for the answers in progress."""
        late = asyncio.get_running_loop().call_later(GRACE, self.engine.stop)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal, soon at the second, at once at the third, of either kind."""
        if not self.should_exit:
            super().handle_exit(sig, frame)
        elif self.loop is None or self.hurries:
            self.force_exit = True
        else:
            self.hurries = True
            self.loop.call_soon_threadsafe(self.hurry)  # a handler must not take the engine's lock

    def hurry(self) -> None:
        """Fail unanswered requests, and wait only until their clients are told."""
        self.engine.stop()
        assert self.loop is not None
        self.loop.call_later(HASTE, self.force)

    def force(self) -> None:
        """Stop waiting for anything."""
        self.force_exit = True


def run_until_signal(app: Starlette, engine: Engine | Replicas, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, and then for at most `GRACE` seconds.

    A second signal of either kind fails the requests that are not answered by then.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(GRACE) + LEEWAY,
    )
    # At the end uvicorn raises the signals it caught again: they must not kill the process.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with told_usefully(), suppress(KeyboardInterrupt):
            Server(config, engine).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
