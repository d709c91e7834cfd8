"""The definitions of what is counted; every table of the evaluation prints `DEFINITIONS`."""

from collections.abc import Iterable
from dataclasses import dataclass

from dlm.eval.sample import Sample

DEFINITIONS = (
    (
        "forwards",
        "forward passes that a row took part in (number of function evaluations, NFE), mean over "
        "rows",
    ),
    (
        "query tokens",
        "positions that the network computed in all forward passes of a row: prompt and shadow "
        "positions included, each counted twice with guidance, padding excluded; mean over rows",
    ),
    (
        "response / forward",
        "response tokens per forward pass, both summed over rows; response tokens are those "
        "before the first end of text, and in filled blanks all but ends of text",
    ),
    (
        "tokens / forward",
        "the same for every position that a forward pass committed, end of text included, as `dlm"
        " generate` counts; positions filled in after an end of text without a forward pass are "
        "not counted",
    ),
    (
        "response / s",
        "response tokens per second of decoding by one process, both summed over rows; the time "
        "from one batch of finished samples to the next is divided among the samples of the "
        "latter in proportion to their query tokens; loading, a warm-up of two forward passes, "
        "extraction and scoring are not timed",
    ),
    ("tokens / s", "the same for every position that a forward pass committed"),
    (
        "prompt tokens",
        "never counted as tokens; a prompt that is too long for the model counts as failed in the"
        " score, and does not count in the other columns",
    ),
)
"""The meaning of each column."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over the decoded samples."""

    samples: int
    forwards: int
    query_tokens: int
    response_tokens: int
    decoded_tokens: int
    seconds: float

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "Counts":
        """Add up samples."""
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
        """Mean forward passes (NFE) per row."""
        return ratio(self.forwards, self.samples)

    @property
    def query_tokens_per_row(self) -> float:
        """Mean positions evaluated per row."""
        return ratio(self.query_tokens, self.samples)

    @property
    def seconds_per_row(self) -> float:
        """Mean seconds per row."""
        return ratio(self.seconds, self.samples)

    @property
    def response_tokens_per_forward(self) -> float:
        """Response tokens per forward pass."""
        return ratio(self.response_tokens, self.forwards)

    @property
    def tokens_per_forward(self) -> float:
        """Committed positions per forward pass."""
        return ratio(self.decoded_tokens, self.forwards)

    @property
    def response_tokens_per_second(self) -> float:
        """Response tokens per second of one process."""
        return ratio(self.response_tokens, self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Committed positions per second of one process."""
        return ratio(self.decoded_tokens, self.seconds)


def ratio(amount: float, over: float) -> float:
    """A ratio; 0 if nothing was decoded."""
    return amount / over if over else 0.0
