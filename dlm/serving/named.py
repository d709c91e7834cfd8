"""Request ids, by which clients, proxies and logs tell requests apart."""

import re
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "x-request-id"
SANE: Final = re.compile("[A-Za-z0-9._:+/=-]{1,128}")
"""Ids that a client may choose: they cannot break a log line or a header."""


class Named:
    """Gives every request an id, the client's own if it is sane, and every answer the same id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if SANE.fullmatch(given) else uuid.uuid4().hex

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        await self.app({**scope, HEADER: name}, receive, answer)


def name_of(scope: Scope) -> str:
    """The id of a request."""
    return str(scope.get(HEADER, ""))
