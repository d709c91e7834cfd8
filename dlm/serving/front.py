"""Running the application until a signal ends it."""

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
"""Seconds that requests have to be answered in once it ends."""
LEEWAY: Final = 5
"""Seconds more in which those that were not learn so."""
HASTE: Final = 2.0
"""Seconds in which they do at a second signal."""
KEEP_ALIVE: Final = 75
"""Seconds without a request after which a connection is closed: longer than clients and proxies
keep theirs, who would write into one that is just being closed."""
BACKLOG: Final = 128
"""Connections that wait to be taken. Where no descriptor is left asyncio tries, and tells, so
often at a time."""


class Server(uvicorn.Server):
    """One whose engine stops when answers take too long to end."""

    def __init__(self, config: uvicorn.Config, engine: Engine | Replicas) -> None:
        super().__init__(config)
        self.engine = engine
        self.loop: asyncio.AbstractEventLoop | None = None
        self.hurries = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no requests, and wait for the answers of those that there are."""
        late = asyncio.get_running_loop().call_later(GRACE, self.engine.stop)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal, soon at the second, at once at the third, whichever they are."""
        if not self.should_exit:
            super().handle_exit(sig, frame)
        elif self.loop is None or self.hurries:
            self.force_exit = True
        else:
            self.hurries = True
            self.loop.call_soon_threadsafe(self.hurry)  # the engine's lock is not for handlers

    def hurry(self) -> None:
        """Fail what is not answered, and wait no longer than it takes to say so."""
        self.engine.stop()
        assert self.loop is not None
        self.loop.call_later(HASTE, self.force)

    def force(self) -> None:
        """Wait for nothing any more."""
        self.force_exit = True


def run_until_signal(app: Starlette, engine: Engine | Replicas, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, and then for at most `GRACE` seconds.

    A second signal of either kind fails what is not answered then.
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
    # uvicorn raises what it caught once more in the end: that must not kill the process.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with told_usefully(), suppress(KeyboardInterrupt):
            Server(config, engine).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
