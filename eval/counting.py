"""What is counted, defined once: every table of the evaluation prints `DEFINITIONS`."""

from collections.abc import Iterable
from dataclasses import dataclass

from dlm.eval.sample import Sample

DEFINITIONS = (
    ("forwards", "network evaluations a row took part in (NFE), mean over rows"),
    (
        "query tokens",
        "positions the network was evaluated at, in all forwards of a row: prompt and shadow "
        "positions included, guidance twice, padding not at all; mean over rows",
    ),
    (
        "response / forward",
        "response tokens (in front of the first end of text, and in filled blanks all but ends of "
        "text) over forwards, both summed over rows",
    ),
    (
        "tokens / forward",
        "the same with every position that a forward committed, end of text included, as "
        "`dlm generate` counts; what is filled in behind an end of text without a forward is not "
        "counted",
    ),
    (
        "response / s",
        "response tokens over seconds of decoding of one process, both summed over rows; the "
        "seconds between two batches of samples that are done are shared by the latter in "
        "proportion to their query tokens; loading, "
        "a warm-up of two forwards, extraction and scoring are not timed",
    ),
    ("tokens / s", "the same with every position that a forward committed"),
    (
        "prompt tokens",
        "never counted as tokens; a prompt too long for the model counts as failed in the score "
        "and nowhere else",
    ),
)
"""What each column means."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over samples that were decoded."""

    samples: int
    forwards: int
    query_tokens: int
    response_tokens: int
    decoded_tokens: int
    seconds: float

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "Counts":
        """Add them up."""
        rows = [row for row in samples if row.forwards]
        return cls(
            samples=len(rows),
            forwards=sum(row.forwards for row in rows),
            query_tokens=sum(row.query_tokens for row in rows),
            response_tokens=sum(row.response_tokens for row in rows),
            decoded_tokens=sum(row.decoded_tokens for row in rows),
            seconds=sum(row.seconds for row in rows),
        )

    @property
    def forwards_per_row(self) -> float:
        """Mean NFE."""
        return ratio(self.forwards, self.samples)

    @property
    def query_tokens_per_row(self) -> float:
        """Mean positions evaluated."""
        return ratio(self.query_tokens, self.samples)

    @property
    def seconds_per_row(self) -> float:
        """Mean share of the time."""
        return ratio(self.seconds, self.samples)

    @property
    def response_tokens_per_forward(self) -> float:
        """In front of the first end of text."""
        return ratio(self.response_tokens, self.forwards)

    @property
    def tokens_per_forward(self) -> float:
        """Of every committed position."""
        return ratio(self.decoded_tokens, self.forwards)

    @property
    def response_tokens_per_second(self) -> float:
        """In front of the first end of text, by one process."""
        return ratio(self.response_tokens, self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of every committed position, by one process."""
        return ratio(self.decoded_tokens, self.seconds)


def ratio(amount: float, over: float) -> float:
    """A share; 0 where nothing was decoded."""
    return amount / over if over else 0.0
