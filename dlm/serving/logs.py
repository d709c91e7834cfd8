"""Filters lines that help nobody out of what asyncio and uvicorn log."""

import asyncio
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LOGGERS: Final = ("asyncio", "uvicorn.error")
SELDOM: Final = 60.0
"""Seconds between messages that connections cannot be accepted."""


class Useful(logging.Filter):
    """Passes only what somebody can act on."""

    def __init__(self) -> None:
        super().__init__()
        self.told = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is useful."""
        message, error = record.getMessage(), record.exc_info and record.exc_info[1]
        if message.startswith("socket.send() raised exception"):  # a client has gone
            return False
        if isinstance(error, asyncio.CancelledError):  # a request was cut short by the end
            return False
        return not message.startswith("socket.accept() out of") or self.takes(record, error)

    def takes(self, record: logging.LogRecord, error: BaseException | None) -> bool:
        """Whether to log now, on one line, that connections cannot be accepted.

        asyncio logs it for each of them, with a traceback, and tries again every second.
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
    """Filter the logs while the context is open."""
    useful = Useful()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(useful)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(useful)
