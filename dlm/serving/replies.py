"""Objects of OpenAI's endpoints, as JSON."""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from dlm.serving.answer import Answer, Choice, Piece
from dlm.serving.logprobs import Listed, chat_logprobs, completion_logprobs
from dlm.serving.tools import Called

OWNER = "dlm"
LONGEST = 600  # characters of a message, which may quote a body
LISTED = " Known: "  # begins the list of known names that ends a message
LONGEST_LIST = 3000  # characters of it, as a quoted body may have that word, too


def dumped(value: Any) -> bytes:
    """Encode as JSON in ASCII, which can hold broken text of a body, too."""
    return json.dumps(value, separators=(",", ":")).encode()


def error_object(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": shortened(message), "type": kind, "param": param, "code": code}}


def shortened(message: str) -> str:
    """A message with its middle cut out if it is long.

    A list of names at its end is left as it is.
    """
    told, known, names = message.rpartition(LISTED)
    if not known or len(names) > LONGEST_LIST:
        told, known, names = message, "", ""
    if len(told) > LONGEST:
        told = f"{told[: LONGEST // 2]} ... {told[-LONGEST // 3 :]}"
    return f"{told}{known}{names}"


def model_object(name: str, created: int, most: int) -> dict[str, Any]:
    """The served model. `max_model_len` is as in vLLM: prompt and answer together, tokens."""
    told = {"id": name, "object": "model", "created": created, "owned_by": OWNER}
    return {**told, "max_model_len": most}


class Writer:
    """Writes one answer, whole or in chunks.

    Besides OpenAI's fields, an answer has its `seed`, and each choice its `forwards`: null if a
    stop text cut it short.
    """

    def __init__(self, answer: Answer, name: str) -> None:
        self.answer = answer
        self.chat = answer.asked.chat
        self.begun: set[int] = set()  # choices that have had a chunk
        prefix = "chatcmpl" if self.chat else "cmpl"
        self.head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self.chat else "text_completion",
            "created": int(time.time()),
            "model": name,
            "seed": answer.asked.request.settings.seed,
        }

    def whole(self) -> dict[str, Any]:
        """The whole answer, once it is complete."""
        choices = [self.choice(*numbered) for numbered in enumerate(self.answer.choices)]
        return {**self.head, "choices": choices, "usage": self.usage()}

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A choice of a whole answer."""
        said: dict[str, Any] = {"text": self.echo(index) + choice.text}
        if self.chat:
            said = {"message": {"role": "assistant", **content(choice.text, choice.calls)}}
        return {"index": index, **said, **self.logprobs(choice.tokens), **ending(choice)}

    def echo(self, index: int) -> str:
        """The prompt's text in front of a choice, if it is asked for."""
        echoes = self.answer.asked.echoes
        return echoes[index] if echoes else ""

    def logprobs(self, tokens: Sequence[Listed]) -> dict[str, Any]:
        """The log-probabilities of tokens; null if they are not asked for."""
        alternatives = self.answer.asked.logprobs
        if alternatives is None:
            return {"logprobs": None}
        if self.chat:
            return {"logprobs": chat_logprobs(tokens)}
        return {"logprobs": completion_logprobs(tokens, alternatives)}

    def usage(self) -> dict[str, Any]:
        """Number of tokens in the prompts, and of decoded tokens."""
        prompt, completion = self.answer.asked.prompt_tokens, self.answer.completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.answer.cached_tokens},
        }

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks of a piece: its text, and how its choice ended if it did."""
        begins = piece.index not in self.begun
        first = self.chat and begins
        over = piece.choice.finish_reason is not None
        text = (self.echo(piece.index) if begins else "") + piece.text
        if text or piece.tokens or piece.calls or (first and over):
            said: dict[str, Any] = {"text": text}
            if self.chat:
                role = {"role": "assistant"} if first else {}
                said = {"delta": {**role, **content(text, piece.calls, streams=True)}}
            self.begun.add(piece.index)
            found = self.logprobs(piece.tokens)
            yield self.chunk([{"index": piece.index, **said, **found, "finish_reason": None}])
        if over:
            nothing: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
            yield self.chunk(
                [{"index": piece.index, **nothing, "logprobs": None, **ending(piece.choice)}]
            )

    def last_chunk(self) -> dict[str, Any]:
        """The usage of the whole answer, sent after all choices."""
        return {**self.chunk([]), "usage": self.usage()}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """One object of a stream."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        usage = {"usage": None} if self.answer.asked.include_usage else {}
        return {**self.head, "object": kind, "choices": choices, **usage}


def content(text: str, calls: Sequence[Called], *, streams: bool = False) -> dict[str, Any]:
    """Text and calls of a message or of part of one; next to calls, empty text is null."""
    if not calls:
        return {"content": text}
    told = [
        {
            **({"index": call.number} if streams else {}),
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]
    return {"content": text or None, "tool_calls": told}


def ending(choice: Choice) -> dict[str, Any]:
    """How a choice ended."""
    return {"finish_reason": choice.finish_reason, "forwards": choice.forwards}


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + (value if isinstance(value, bytes) else dumped(value)) + b"\n\n"
