"""Counters and histograms of a server, in the text format of Prometheus."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from dlm.serving.exchange import Served

TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
"""Upper bounds of the histogram buckets, seconds; one more bucket has no bound."""

Sample = tuple[str, float]  # what follows the metric's name, and the value


@dataclass(slots=True)
class Times:
    """Histogram of how long requests took."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))  # of each bucket
    total: float = 0.0  # seconds

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def samples(self, label: str) -> Iterator[Sample]:
        """Samples of the histogram; each bucket includes those before it."""
        for bound, count in zip((*BOUNDS, "+Inf"), accumulate(self.counts), strict=True):
            yield f'_bucket{{{label},le="{bound}"}}', count
        yield f"_sum{{{label}}}", self.total
        yield f"_count{{{label}}}", sum(self.counts)


@dataclass(slots=True)
class Metrics:
    """Totals over all finished completions and chats."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # by endpoint and status
    times: dict[str, Times] = field(default_factory=dict)  # by endpoint
    firsts: dict[str, Times] = field(
        default_factory=dict
    )  # by endpoint, to the first text of a stream
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    forwards: int = 0

    def add(self, served: Served) -> None:
        """Count a finished request."""
        self.requests[served.endpoint, served.status] += 1
        self.times.setdefault(served.endpoint, Times()).add(served.seconds)
        if served.first_seconds is not None:
            self.firsts.setdefault(served.endpoint, Times()).add(served.first_seconds)
        self.prompt_tokens += served.prompt_tokens
        self.cached_tokens += served.cached_tokens
        self.completion_tokens += served.completion_tokens
        self.forwards += served.forwards or 0

    def text(self, *, alive: int, decoding: int, waiting: int) -> str:
        """All metrics, and the engine's current state."""
        parts = [
            gauge("engine_running", "Engines that decode requests.", alive),
            gauge("rows_decoding", "Rows being decoded.", decoding),
            gauge("rows_waiting", "Rows that wait.", waiting),
            metric(
                "requests_total",
                "counter",
                "Completions and chats that are over; 499 where the client went away.",
                (
                    (f'{{endpoint="{endpoint}",status="{status}"}}', count)
                    for (endpoint, status), count in sorted(self.requests.items())
                ),
            ),
            counter("prompt_tokens_total", "Tokens of their prompts.", self.prompt_tokens),
            counter("cached_tokens_total", "Those of them taken from others.", self.cached_tokens),
            counter("completion_tokens_total", "Tokens of answers.", self.completion_tokens),
            counter("forwards_total", "Forwards of rows decoded to their end.", self.forwards),
            histogram(
                "request_seconds",
                "From the head of a request to the end of its answer.",
                self.times,
            ),
            histogram(
                "first_text_seconds",
                "From the head of a request to the first text of a stream.",
                self.firsts,
            ),
        ]
        return "".join(parts)


def metric(name: str, kind: str, about: str, samples: Iterable[Sample]) -> str:
    """Lines of one metric."""
    lines = [f"# HELP dlm_{name} {about}", f"# TYPE dlm_{name} {kind}"]
    lines += [f"dlm_{name}{label} {value}" for label, value in samples]
    return "\n".join(lines) + "\n"


def histogram(name: str, about: str, each: Mapping[str, Times]) -> str:
    """Lines of a histogram, by endpoint."""
    samples = (
        sample
        for endpoint, times in sorted(each.items())
        for sample in times.samples(f'endpoint="{endpoint}"')
    )
    return metric(name, "histogram", about, samples)


def gauge(name: str, about: str, value: int) -> str:
    """Lines of a current value."""
    return metric(name, "gauge", about, [("", int(value))])


def counter(name: str, about: str, value: int) -> str:
    """Lines of a total."""
    return metric(name, "counter", about, [("", value)])
