"""Tokens of a choice with their log-probabilities, in OpenAI's two forms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from dlm.models.model import Model
from dlm.reading import Reader
from dlm.serving.work import Ended, Grown
from dlm.spelling import Spelled, Speller

NEVER: Final = -9999.0
"""What OpenAI's API has for a token of hardly any probability: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A token of a choice's text."""

    spelled: Spelled
    value: float | None  # ln of its confidence, nats; None where no forward wrote it


class Listing:
    """Lists the tokens that the text of a choice is made of, each once, as that is given.

    Those that begin in front of a stop text, or of the stop token that ends the text.
    """

    def __init__(self, model: Model) -> None:
        self.speller = Speller(model)
        self.values: list[float] = []
        self.spelled: list[Spelled] = []
        self.count = 0  # tokens that were listed

    def take(self, event: Grown | Ended, reader: Reader) -> list[Listed]:
        """Those that begin in what was given, which a reader that took this event knows."""
        values = event.log_probabilities
        assert values is not None
        self.values += values if isinstance(event, Grown) else values[len(self.values) :]
        self.spelled += self.speller.push(reader.tokens[self.speller.count :])
        if isinstance(event, Ended):
            self.spelled += self.speller.end()
        begin, given = self.count, len(reader.given)
        over = isinstance(event, Ended) and not reader.stopped
        while self.count < len(self.spelled) and (over or self.spelled[self.count].offset < given):
            self.count += 1
        found = zip(self.spelled[begin : self.count], self.values[begin : self.count], strict=True)
        return [Listed(spelled, finite(value)) for spelled, value in found]


def finite(value: float) -> float | None:
    """A log-probability as JSON can say it."""
    return None if math.isnan(value) else max(value, NEVER)


def chat_logprobs(tokens: Sequence[Listed]) -> dict[str, Any]:
    """As an answer of a chat has them."""
    content = [
        {
            "token": each.spelled.name,
            "logprob": each.value,
            "bytes": None if each.spelled.spelled is None else list(each.spelled.spelled),
            "top_logprobs": [],
        }
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[Listed], alternatives: int) -> dict[str, Any]:
    """As a completion has them; of likeliest tokens, where some are asked for, just this one."""
    names = [legacy_name(each.spelled) for each in tokens]
    values = [each.value for each in tokens]
    only = [{name: value} for name, value in zip(names, values, strict=True)]
    return {
        "tokens": names,
        "token_logprobs": values,
        "top_logprobs": only if alternatives else None,
        "text_offset": [each.spelled.offset for each in tokens],
    }


def legacy_name(spelled: Spelled) -> str:
    """The name of a token, marked where it holds part of a character."""
    data = spelled.spelled
    whole = data is None or data.decode(errors="ignore").encode() == data
    return spelled.name if whole else f"bytes:{spelled.name}"
