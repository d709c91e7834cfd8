"""What asyncio and uvicorn log, without the lines that help nobody."""

import asyncio
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LOGGERS: Final = ("asyncio", "uvicorn.error")
SELDOM: Final = 60.0
"""Seconds between lines that there is no room for connections."""


class Useful(logging.Filter):
    """Passes what somebody can do something about."""

    def __init__(self) -> None:
        super().__init__()
        self.told = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is of use."""
        message, error = record.getMessage(), record.exc_info and record.exc_info[1]
        if message.startswith("socket.send() raised exception"):  # of a client that has gone
            return False
        if isinstance(error, asyncio.CancelledError):  # of a request that the end cut short
            return False
        return not message.startswith("socket.accept() out of") or self.takes(record, error)

    def takes(self, record: logging.LogRecord, error: BaseException | None) -> bool:
        """Whether to say now that connections cannot be taken, on one line.

        asyncio says it of each of them, with a traceback, and tries again every second.
        """
        now = time.monotonic()
        if now - self.told < SELDOM:
            return False
        self.told = now
        record.msg, record.args = "connections wait, as none can be taken now: %s", (error,)
        record.exc_info = record.exc_text = None
        return True


@contextmanager
def told_usefully() -> Iterator[None]:
    """Let no other lines through."""
    useful = Useful()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(useful)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(useful)
