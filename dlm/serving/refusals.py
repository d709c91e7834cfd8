"""Why a request is not answered, in the shape of OpenAI's errors."""

import re
from typing import Any

from dlm.prompts import TooLong
from dlm.serving import fields, replies
from dlm.serving.protocol import UnknownModel
from dlm.serving.work import Busy

LEFT = 499  # what servers write for a client that went away
AWAY = "the client went away"
CUT = "the server ended"

KINDS = {401: "authentication_error", 429: "rate_limit_error"}
FIELDS = frozenset({*fields.COMPLETION, *fields.CHAT, *fields.UNSUPPORTED})


class Wrong(Exception):
    """A request that is not answered."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param  # the field that is to blame
        self.code = code

    def body(self) -> dict[str, Any]:
        """What the client is told."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = KINDS.get(self.status, usual)
        return replies.error_object(self.message, kind, self.param, self.code)


class Gone(Exception):
    """The client does not wait for the answer any more."""


class Closed(Exception):
    """The engine does not run any more."""


def wrong_of(error: Exception) -> Wrong:
    """What a client is told of an error: of those of its own what is wrong, of ours that it is."""
    if isinstance(error, Wrong):
        return error
    if isinstance(error, UnknownModel):
        return Wrong(404, str(error), param="model", code="model_not_found")
    if isinstance(error, ValueError):
        code = "context_length_exceeded" if isinstance(error, TooLong) else None
        return Wrong(400, str(error), param=field_of(str(error)), code=code)
    if isinstance(error, Busy):
        return Wrong(429, str(error) or "too many rows wait: ask again later", code="queue_full")
    if isinstance(error, Closed):
        return Wrong(503, "the server decodes nothing any more", code="closed")
    if isinstance(error, Gone):
        return Wrong(LEFT, AWAY)
    return Wrong(500, "the server failed at this request", code="internal_error")


def field_of(message: str) -> str | None:
    """The field that a message begins with."""
    word = re.match(r"\w*", message)
    return word[0] if word and word[0] in FIELDS else None
