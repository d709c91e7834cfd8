"""Tokens of a choice with their log-probabilities, in OpenAI's two formats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dlm.models.model import Model
from dlm.reading import Reader
from dlm.serving.work import Ended, Grown
from dlm.spelling import Spelled, Speller
from dlm.trajectory import Likeliest

NEVER: Final = -9999.0
"""OpenAI's value for a token of hardly any probability: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A token of a choice's text."""

    spelled: Spelled
    value: float | None  # ln of its confidence, nats; None if no forward pass wrote it
    top: list[tuple[Spelled, float]] = field(default_factory=list)  # the likeliest, with values


class Listing:
    """Lists the tokens of a choice's text, each once, as the text is given.

    They are those that begin before a stop text, or before the stop token that ends the text.
    """

    def __init__(self, model: Model) -> None:
        self.speller = Speller(model)
        self.values: list[float] = []
        self.tops: list[Likeliest] = []
        self.spelled: list[Spelled] = []
        self.count = 0  # tokens listed so far

    def take(self, event: Grown | Ended, reader: Reader) -> list[Listed]:
        """List the tokens that begin in the text given now; `reader` has taken the event before."""
        values = event.log_probabilities
        assert values is not None
        self.values += values if isinstance(event, Grown) else values[len(self.values) :]
        tops = event.top_tokens or [[] for _ in values]
        self.tops += tops if isinstance(event, Grown) else tops[len(self.tops) :]
        self.spelled += self.speller.push(reader.tokens[self.speller.count :])
        if isinstance(event, Ended):
            self.spelled += self.speller.end()
        begin, given = self.count, len(reader.given)
        over = isinstance(event, Ended) and not reader.stopped
        while self.count < len(self.spelled) and (over or self.spelled[self.count].offset < given):
            self.count += 1
        return [
            Listed(self.spelled[at], finite(self.values[at]), self.likeliest(at, reader.tokens))
            for at in range(begin, self.count)
        ]

    def likeliest(self, place: int, tokens: Sequence[int]) -> list[tuple[Spelled, float]]:
        """The likeliest tokens at a place, as they would read there, with their values."""
        top = self.tops[place]
        spelled = self.speller.instead(tokens[:place], [token for token, _ in top])
        values = (max(value, NEVER) for _, value in top)
        return [*zip(spelled, values, strict=True)]


def finite(value: float) -> float | None:
    """A log-probability as JSON can hold it."""
    return None if math.isnan(value) else max(value, NEVER)


def chat_logprobs(tokens: Sequence[Listed]) -> dict[str, Any]:
    """The `logprobs` of a choice in a chat."""
    content = [
        {
            **chat_logprob(each.spelled, each.value),
            "top_logprobs": [chat_logprob(*pair) for pair in each.top],
        }
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def chat_logprob(spelled: Spelled, value: float | None) -> dict[str, Any]:
    """One token in the format of chats."""
    data = None if spelled.spelled is None else list(spelled.spelled)
    return {"token": spelled.name, "logprob": value, "bytes": data}


def completion_logprobs(tokens: Sequence[Listed], alternatives: int) -> dict[str, Any]:
    """The `logprobs` of a choice in a completion.

    With `alternatives`, they list the likeliest tokens at each position, and the token itself.
    """
    return {
        "tokens": [legacy_name(each.spelled) for each in tokens],
        "token_logprobs": [each.value for each in tokens],
        "top_logprobs": [legacy_top(each) for each in tokens] if alternatives else None,
        "text_offset": [each.spelled.offset for each in tokens],
    }


def legacy_top(listed: Listed) -> dict[str, float | None]:
    """The likeliest tokens by name, and the token itself.

    Of tokens with the same name, the token itself counts, otherwise the likeliest.
    """
    found: dict[str, float | None] = {}
    for spelled, value in listed.top:
        found.setdefault(legacy_name(spelled), value)
    return found | {legacy_name(listed.spelled): listed.value}


def legacy_name(spelled: Spelled) -> str:
    """The name of a token, marked if it holds part of a character."""
    data = spelled.spelled
    whole = data is None or data.decode(errors="ignore").encode() == data
    return spelled.name if whole else f"bytes:{spelled.name}"
