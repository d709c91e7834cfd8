"""What is asked of an engine, and what it tells."""

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
"""That a request may ask for, and what is measured for any: so they share forwards."""


@dataclass(frozen=True, slots=True)
class Request:
    """Rows to decode with the same options, checked and laid out.

    Raises:
        ValueError: alternatives are no int from 0 to 20, or go without log-probabilities.
    """

    rows: list[list[int]]  # token ids, the mask id wherever a token is to be decoded
    spans: list[tuple[int, int]]  # of each row, what is handed back
    settings: Settings  # `row_keys` has one for each row
    follow: bool = False  # whether tokens are told as they become final
    log_probabilities: bool = False  # whether those are told with them
    alternatives: int = 0  # likeliest tokens that are told with each
    growth: Growth | None = None  # how far blanks may grow; None where they keep their length
    measured: Settings = field(init=False, repr=False, compare=False)
    """`settings`, and what is told is measured. Made once, as it makes a decoder, which rows that
    share forwards are compared by."""

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
    """Whether binding it to a model makes another of it."""
    return getattr(type(decoder), "bind", Policy.bind) is not Policy.bind


def measuring(settings: Settings) -> Settings:
    """Settings by which the confidence of what is written is measured.

    They are the same ones for a decoder that looks at it anyway, whose rows share forwards with
    those of requests that do not ask for it.
    """
    looks = "confidence" in Traits.of(settings.policy).needs and not binds(settings.policy)
    return settings if looks else replace(settings, return_trajectory=True)


@dataclass(frozen=True, slots=True)
class Reused:
    """Told once, at the beginning, of a row that begins as one before it did."""

    row: int  # of the request
    tokens: int  # of its prompt, whose keys and values were taken over


@dataclass(frozen=True, slots=True)
class Grown:
    """Tokens of a row that no later forward changes."""

    row: int  # of the request
    tokens: list[int]  # of the span, those that follow what was told before
    log_probabilities: list[float] | None = None  # as of `dlm.generate`; None if not asked for
    top_tokens: list[Likeliest] | None = None  # likewise


@dataclass(frozen=True, slots=True)
class Ended:
    """A row after its last forward; nothing is told of it any more."""

    row: int
    tokens: list[int]  # the whole span
    decoded: int  # positions that forwards committed
    forwards: int
    log_probabilities: list[float] | None = None  # of the whole span
    top_tokens: list[Likeliest] | None = None  # likewise
    closed: bool = False  # whether the network wanted no more blanks, where it may ask for some


@dataclass(frozen=True, slots=True)
class Failed:
    """The request cannot be answered; nothing is told of it any more."""

    error: Exception  # a ValueError where the request is to blame


News = Reused | Grown | Ended
"""What is told of a row."""
Event = News | Failed
Tell = Callable[[Event], None]
"""Called in the engine's thread, and not to wait for anything."""


class Busy(Exception):
    """More rows wait than the engine has room for."""
