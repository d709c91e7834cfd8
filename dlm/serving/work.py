"""Requests to an engine, and the events that it reports."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from dlm.decoders.base import Policy
from dlm.growth import Growth
from dlm.options import integer
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.trajectory import Likeliest
from dlm.types import AnyDecoder

MOST_ALTERNATIVES: Final = 20
"""Most that a request may ask for. All that ask for any measure this many, to share passes."""


@dataclass(frozen=True, slots=True)
class Request:
    """Rows to decode with the same options, checked and laid out.

    Raises:
        ValueError: `alternatives` is not an int from 0 to 20, or is set without
            `log_probabilities`.
    """

    rows: list[list[int]]  # token ids, the mask id wherever a token is to be decoded
    spans: list[tuple[int, int]]  # of each row, the part that is returned
    settings: Settings  # `row_keys` has one for each row
    follow: bool = False  # whether tokens are reported as they become final
    log_probabilities: bool = False  # whether those are reported with the tokens
    alternatives: int = 0  # likeliest tokens reported with each
    growth: Growth | None = None  # how far blanks may grow; None if their number is fixed
    measured: Settings = field(init=False, repr=False, compare=False)
    """`settings`, extended to measure what is reported. Built once, because that creates a decoder,
    and rows that share forward passes are compared by their decoders."""

    def __post_init__(self) -> None:
        integer("alternatives", self.alternatives, least=0, most=MOST_ALTERNATIVES)
        if self.alternatives and not self.log_probabilities:
            raise ValueError(
                f"alternatives go with log_probabilities, got {self.alternatives} without"
            )
        made = measuring(self.settings) if self.log_probabilities else self.settings
        if self.alternatives:
            made = replace(made, return_top_tokens=MOST_ALTERNATIVES)
        object.__setattr__(self, "measured", made)


def binds(decoder: AnyDecoder) -> bool:
    """Whether binding the decoder to a model creates another one."""
    return getattr(type(decoder), "bind", Policy.bind) is not Policy.bind


def measuring(settings: Settings) -> Settings:
    """Settings under which the confidence of written tokens is measured.

    They are unchanged for a decoder that uses confidence anyway: its rows share forward passes with
    those of requests that do not ask for it.
    """
    looks = "confidence" in Traits.of(settings.policy).needs and not binds(settings.policy)
    return settings if looks else replace(settings, return_trajectory=True)


@dataclass(frozen=True, slots=True)
class Reused:
    """Reported once, at the start, for a row whose prompt begins like one in the prompt cache."""

    row: int  # index in the request
    tokens: int  # of its prompt, whose keys and values were reused


@dataclass(frozen=True, slots=True)
class Grown:
    """Tokens of a row that no later forward pass changes."""

    row: int  # index in the request
    tokens: list[int]  # of the span, following those reported before
    log_probabilities: list[float] | None = None  # as in `dlm.generate`; None if not asked for
    top_tokens: list[Likeliest] | None = None  # likewise


@dataclass(frozen=True, slots=True)
class Ended:
    """A row after its last forward pass; nothing more is reported for it."""

    row: int
    tokens: list[int]  # the whole span
    decoded: int  # positions that forward passes committed
    forwards: int
    log_probabilities: list[float] | None = None  # of the whole span
    top_tokens: list[Likeliest] | None = None  # likewise
    closed: bool = False  # whether blanks that may grow ended short of their limit


@dataclass(frozen=True, slots=True)
class Failed:
    """The request cannot be answered; nothing more is reported for it."""

    error: Exception  # a ValueError if the request is to blame


News = Reused | Grown | Ended
"""An event of a row."""
Event = News | Failed
Tell = Callable[[Event], None]
"""Called in the engine's thread; must not block."""


class Busy(Exception):
    """More rows or requests are waiting than there is room for."""
