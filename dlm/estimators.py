"""Likelihood estimators: which answer tokens to mask, and how to combine their log-probabilities.

An estimate is a generator: it yields requests for scores, receives them, and returns nats. The
caller decides which rows share a forward pass.

Shapes: S rows requested at a time, B rows of a batch, n answer tokens.
"""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.kernels import NoiseKey, uniform
from dlm.options import integer, known, plain

ESTIMATORS = ("monte_carlo", "chain")
ORDERS = ("random", "left_to_right", "confidence")

Ask = tuple[Tensor, Tensor]
"""Bool [S, n] both: tokens hidden from the network, and which of them to score."""
Estimate = Generator[Ask, Tensor, float]
"""It receives ln p of the true tokens, float32 [S, n], 0 where not scored."""
Draws = tuple[Tensor, Tensor]
"""All that is random in an estimate. Monte Carlo: bool [S, n], masked tokens, and int64 [S], their
number. Chain: int64 [S, n] twice, ranks."""


@dataclass(frozen=True)
class Estimator:
    """How answers are scored; `dlm.log_likelihood` explains the options.

    Raises:
        ValueError: an option is invalid.
    """

    estimator: str
    samples: int
    batch_size: int  # draws stratified together; rows of a chain requested at a time
    order: str
    seed: int
    device: torch.device  # of masks and scores

    def __post_init__(self) -> None:
        known("estimator", self.estimator, ESTIMATORS)
        known("order", self.order, ORDERS)
        if self.estimator != "chain" and self.order != "random":
            raise ValueError(
                f"order is for estimator='chain', got order={self.order!r} with {self.estimator!r}"
            )
        integer("samples", self.samples, least=1)
        integer("batch_size", self.batch_size, least=1)
        integer("seed", self.seed, least=-(1 << 63), most=(1 << 64) - 1)
        plain(self)

    def rows(self, length: int) -> int:
        """The most distinct rows that an answer of `length` tokens takes."""
        draws = self.samples if self.order == "random" else 1
        each = 1 if self.estimator == "monte_carlo" else length
        return min(draws * each, (1 << min(length, 62)) - 1)

    def estimate(
        self, begin: int, length: int, draws: Callable[[int, int], Draws] | None = None
    ) -> Estimate:
        """An estimate for `length` tokens of an answer, starting at its token `begin`.

        Args:
            begin: answer tokens before these, which are given.
            length: n.
            draws: replaces `self.draws`, for example with a cached version; draws do not depend on
                the answer.
        """
        if self.order == "confidence":
            return confidence_chain(length, self.device)
        if self.order == "left_to_right":
            rank = torch.arange(length, device=self.device)[None]
            return chain(rank, self.batch_size)
        one, other = (draws or self.draws)(begin, length)
        if self.estimator == "monte_carlo":
            return monte_carlo(one, other, self.batch_size)
        return chain(one, self.batch_size)

    def draws(self, begin: int, length: int) -> Draws:
        """All random choices of an estimate."""
        if self.estimator == "chain":
            draw = torch.arange(self.samples, device=self.device)
            rank = ranks(self.noise(begin, length, draw))
            return rank, rank
        masked, counts = [], []
        for first in range(0, self.samples, self.batch_size):
            rows = min(self.batch_size, self.samples - first)
            draw = torch.arange(first, first + rows, device=self.device)
            # The offset of the batch comes from the last position's noise in an extra draw.
            extra = torch.tensor([self.samples + first], device=self.device)
            pick = self.noise(begin, length, extra)[0, -1]
            offset = min(int(pick * length) + 1, length)
            count = stratified_counts(offset, rows, length).to(self.device)
            masked.append(ranks(self.noise(begin, length, draw)) < count[:, None])
            counts.append(count)
        return torch.cat(masked), torch.cat(counts)

    def noise(self, begin: int, length: int, draw: Tensor) -> Tensor:
        """Independent uniforms for each token of each draw, float32 [S, n]."""
        rows = draw.numel()
        key = NoiseKey(
            self.seed,
            torch.zeros(rows * length, dtype=torch.int64, device=draw.device),
            torch.arange(begin, begin + length, device=draw.device).repeat(rows),
            draw.repeat_interleave(length),
        )
        return uniform(key).view(rows, length)


def ranks(noise: Tensor) -> Tensor:
    """Each position's rank in the order of the noise, int64 [S, n]."""
    return noise.argsort(-1).argsort(-1)


def stratified_counts(offset: int, rows: int, length: int) -> Tensor:
    """Masked counts of a batch, spread evenly over 1..n from a random offset, int64 [B].

    k_j = (round(offset + j n / B) - 1) mod n + 1: over all offsets in 1..n, every count appears
    equally often.
    """
    # In doubled integers, so that halves round the same way for every offset.
    spread = torch.arange(rows) * (2 * length)
    rounded = (2 * rows * offset + spread + rows) // (2 * rows)
    return (rounded - 1) % length + 1


def monte_carlo(masked: Tensor, count: Tensor, batch_size: int) -> Estimate:
    """The stratified lower bound, from `masked`, bool [S, n], and `count`, int64 [S]."""
    samples, length = masked.shape
    scores = yield masked, masked
    total = 0.0
    for some, k in zip(scores.split(batch_size), count.split(batch_size), strict=True):
        total += float((some.double().sum(-1) * length / k).sum())
    return total / samples


def chain(rank: Tensor, batch_size: int) -> Estimate:
    """The mean over orders of the chain rule along each order; `rank` is int64 [orders, n]."""
    orders, length = rank.shape
    total = 0.0
    for chunk in chunks([(o, step) for o in range(orders) for step in range(length)], batch_size):
        order, step = (torch.tensor(x, device=rank.device) for x in zip(*chunk, strict=True))
        place = rank[order]
        scores = yield place >= step[:, None], place == step[:, None]
        total += float(scores.double().sum())
    return total / orders


def confidence_chain(length: int, device: torch.device) -> Estimate:
    """The chain rule in an order chosen greedily: the most confident true token first."""
    masked = torch.ones(1, length, dtype=torch.bool, device=device)
    total = 0.0
    for _ in range(length):
        scores = yield masked, masked
        best = scores.masked_fill(~masked, -math.inf).argmax(-1)
        total += float(scores[0, best[0]])
        masked = masked.index_fill(1, best, value=False)
    return total


def run(estimate: Estimate, score: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Run one estimate with the given scoring function; nats."""
    ask = next(estimate)
    while True:
        try:
            ask = estimate.send(score(*ask))
        except StopIteration as end:
            return float(end.value)


def together(estimates: list[Estimate]) -> Generator[list[Ask], list[Tensor], list[float]]:
    """Several estimates that make equally many requests, run as one; nats of each."""
    asks = [next(estimate) for estimate in estimates]
    values: list[float] = []
    while not values:
        scores = yield asks
        asks = []
        for estimate, found in zip(estimates, scores, strict=True):
            try:
                asks.append(estimate.send(found))
            except StopIteration as end:
                values.append(float(end.value))
    return values


def chunks(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Consecutive chunks of at most `size` items."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
