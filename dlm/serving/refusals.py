"""Errors that clients are told, in OpenAI's format."""

import re
from dataclasses import fields as fields_of
from typing import Any, Final

from dlm.decoders import DECODERS
from dlm.prompts import TooLong
from dlm.serving import names, replies
from dlm.serving.protocol import UnknownModel
from dlm.serving.work import Busy

LEFT = 499  # the status servers log for a client that went away
AWAY = "the client went away"
CUT = "the server ended"

KINDS = {401: "authentication_error", 429: "rate_limit_error"}
SUBJECT: Final = 4  # first words of a message, which name its field: "texts of stop"
OPTIONS: Final = frozenset(
    option.name
    for decoder in DECODERS.values()
    for option in fields_of(decoder)  # type: ignore[arg-type]
)
OF_TOKENS = ("tokens", "return_token_strs", "add_special_tokens")
FIELDS = frozenset({*names.COMPLETION, *names.CHAT, *names.UNSUPPORTED, *OF_TOKENS})


class Wrong(Exception):
    """An error that a client is told."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param  # the field that is to blame
        self.code = code

    def body(self) -> dict[str, Any]:
        """The body of the error response."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = KINDS.get(self.status, usual)
        return replies.error_object(self.message, kind, self.param, self.code)


class Gone(Exception):
    """The client no longer waits for the answer."""


class Closed(Exception):
    """The engine no longer runs."""


def wrong_of(error: Exception) -> Wrong:
    """What a client is told of an error; errors of the server itself are told without details."""
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
    """The field that a message is about: the first that it names, or whose option it names."""
    subject = re.findall(r"\w+", message.partition(" must ")[0])[:SUBJECT]
    if subject[:2] == ["unknown", "field"]:  # not a field that exists
        return None
    if subject[1:3] == ["of", "decoder_options"]:
        return "decoder_options"
    if subject[:2] == ["token", "ids"]:  # only one field holds token ids
        return "prompt"
    named = next((word for word in subject if word in FIELDS), None)
    first = subject[1:2] if subject[:1] == ["unknown"] else subject[:1]
    of_decoder = first == ["option"] or {*first} & OPTIONS
    return named or ("decoder_options" if of_decoder else None)
