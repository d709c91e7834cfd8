"""Reads and checks the messages of a chat."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from dlm.given import message_text
from dlm.options import boolean, writable
from dlm.prompts import CONTINUE
from dlm.serving import fields
from dlm.serving.tools import read_calls

OF_ROLES: Final[Mapping[str, Sequence[str]]] = {
    "assistant": ("tool_calls",),
    "tool": ("tool_call_id", "name"),
}
"""Fields that messages of a role may have besides role and content."""


def read_messages(value: Any) -> list[dict[str, Any]]:
    """The messages of a chat, each with its content as one text, and its calls if it has any.

    Raises:
        ValueError: they are something else.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'messages must be a list of {{"role": ..., "content": ...}}, got {value!r}'
        )
    return [read_message(message, f"messages[{number}]") for number, message in enumerate(value)]


def read_continues(body: fields.Body, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether to continue the last message of a chat instead of answering it.

    Raises:
        ValueError: the last message is the assistant's and the body does not say to continue it,
            or two fields contradict each other.
    """
    continues = boolean(CONTINUE, body.get(CONTINUE, False))
    begins = boolean("add_generation_prompt", body.get("add_generation_prompt", not continues))
    if begins == continues:
        raise ValueError(
            f"add_generation_prompt must be {not continues} with {CONTINUE} {continues}, "
            f"got {begins}"
        )
    if messages[-1]["role"] == "assistant" and not continues:
        raise ValueError(
            "messages must end with one to the assistant, got one of the assistant: "
            f"{CONTINUE} true continues it"
        )
    return continues


def read_message(message: Any, where: str) -> dict[str, Any]:
    """Read one message, without fields that say nothing."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"{where} must be an object with texts role and content, got {message!r}")
    own = OF_ROLES.get(message["role"], ())
    for name, value in message.items():
        told = name in ("role", "content", *own)
        told = told or (name == "type" and value in ("text", "message"))
        if not told and value not in (None, False, "", [], {}):
            raise fields.unsupported(name, value, f"{where}.{name}")
    role, content = writable(message["role"], f"{where}.role"), message.get("content")
    if content is None and role == "assistant":  # it may have said nothing
        content = ""
    read: dict[str, Any] = {"role": role, "content": message_text(content, f"{where}.content")}
    if role == "assistant" and message.get("tool_calls"):
        read["tool_calls"] = read_calls(message["tool_calls"], f"{where}.tool_calls")
    if role == "tool":
        named = {name: message[name] for name in own if message.get(name)}
        read |= {name: text_of(value, f"{where}.{name}") for name, value in named.items()}
    return read


def text_of(value: Any, where: str) -> str:
    """Check that a value is a text.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a text, got {value!r}")
    return writable(value, where)
