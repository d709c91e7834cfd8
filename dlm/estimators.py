"""Which tokens of an answer are masked, and what their log-probabilities come to.

An estimate is a generator: it asks for scores, is sent them, and returns nats. Whoever runs it
decides which rows share a forward.

Shapes: S rows asked for at a time, B rows of a batch, n answer tokens.
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
"""Bool [S, n] both: what the network does not see, and which of it to score."""
Estimate = Generator[Ask, Tensor, float]
"""It is sent ln p of the true tokens, float32 [S, n], 0 where not scored."""
Draws = tuple[Tensor, Tensor]
"""Bool [S, n], masked tokens, and int64 [S], how many; int64 [S, n] twice, ranks, of a chain."""


@dataclass(frozen=True)
class Estimator:
    """How answers are scored; `dlm.log_likelihood` says what the options mean.

    Raises:
        ValueError: an option breaks its rule.
    """

    estimator: str
    samples: int
    batch_size: int  # draws that are stratified together; rows of a chain asked for at a time
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
        """Rows that an answer of `length` tokens takes at most, where equal ones count once."""
        draws = self.samples if self.order == "random" else 1
        each = 1 if self.estimator == "monte_carlo" else length
        return min(draws * each, (1 << min(length, 62)) - 1)

    def estimate(
        self, begin: int, length: int, draws: Callable[[int, int], Draws] | None = None
    ) -> Estimate:
        """The estimate of `length` tokens of an answer from its token `begin` on.

        Args:
            begin: tokens of the answer in front of them, which are given.
            length: n.
            draws: what gives those of `self.draws`, which do not depend on the answer.
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
        """All that is random."""
        if self.estimator == "chain":
            draw = torch.arange(self.samples, device=self.device)
            rank = ranks(self.noise(begin, length, draw))
            return rank, rank
        masked, counts = [], []
        for first in range(0, self.samples, self.batch_size):
            rows = min(self.batch_size, self.samples - first)
            draw = torch.arange(first, first + rows, device=self.device)
            # The last position's noise of an extra draw decides the offset of the batch.
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
    """Places in the order of the noise, int64 [S, n]."""
    return noise.argsort(-1).argsort(-1)


def stratified_counts(offset: int, rows: int, length: int) -> Tensor:
    """Masked counts of a batch, evenly spread over 1..n from a random offset. int64 [B].

    k_j = (round(offset + j n / B) - 1) mod n + 1: over a full sweep of `offset` in 1..n every
    count appears equally often.
    """
    # In doubled integers, so that halves round alike for every offset.
    spread = torch.arange(rows) * (2 * length)
    rounded = (2 * rows * offset + spread + rows) // (2 * rows)
    return (rounded - 1) % length + 1


def monte_carlo(masked: Tensor, count: Tensor, batch_size: int) -> Estimate:
    """The stratified bound. `masked` bool [S, n], `count` int64 [S] of them."""
    samples, length = masked.shape
    scores = yield masked, masked
    total = 0.0
    for some, k in zip(scores.split(batch_size), count.split(batch_size), strict=True):
        total += float((some.double().sum(-1) * length / k).sum())
    return total / samples


def chain(rank: Tensor, batch_size: int) -> Estimate:
    """Mean over orders of the chain rule along each. `rank` int64 [orders, n]."""
    orders, length = rank.shape
    total = 0.0
    for chunk in chunks([(o, step) for o in range(orders) for step in range(length)], batch_size):
        order, step = (torch.tensor(x, device=rank.device) for x in zip(*chunk, strict=True))
        place = rank[order]
        scores = yield place >= step[:, None], place == step[:, None]
        total += float(scores.double().sum())
    return total / orders


def confidence_chain(length: int, device: torch.device) -> Estimate:
    """The most confident true token first."""
    masked = torch.ones(1, length, dtype=torch.bool, device=device)
    total = 0.0
    for _ in range(length):
        scores = yield masked, masked
        best = scores.masked_fill(~masked, -math.inf).argmax(-1)
        total += float(scores[0, best[0]])
        masked = masked.index_fill(1, best, value=False)
    return total


def run(estimate: Estimate, score: Callable[[Tensor, Tensor], Tensor]) -> float:
    """What an estimate comes to, given what scores the rows it asks for; nats."""
    ask = next(estimate)
    while True:
        try:
            ask = estimate.send(score(*ask))
        except StopIteration as end:
            return float(end.value)


def together(estimates: list[Estimate]) -> Generator[list[Ask], list[Tensor], list[float]]:
    """Several estimates that ask equally often, as one; nats of each."""
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
    """Consecutive pieces of at most `size`."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
