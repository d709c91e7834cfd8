"""Names of requests, by which clients, proxies and logs tell them apart."""

import re
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "x-request-id"
SANE: Final = re.compile("[A-Za-z0-9._:+/=-]{1,128}")
"""What a client may call its request: nothing that a log or a header could be broken by."""


class Named:
    """Gives every request a name, its own if it has one that is sane, and every answer the same."""

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
    """The name of a request."""
    return str(scope.get(HEADER, ""))
