"""Exact tests of paired outcomes, and bootstrap intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
CHUNK = 2**22  # drawn problems kept in memory at once
Z95 = 1.959963984540054  # 97.5% quantile of the normal distribution
ROUNDING = 1e-12  # largest difference of equal resamples


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95% bootstrap interval; None where there is none."""

    value: float | None
    interval: tuple[float, float] | None


def mcnemar(only_baseline: int, only_other: int) -> float:
    """Exact two-sided p of discordant pairs: min(1, 2 P(X <= min(b, c))), X ~ B(b + c, 1/2).

    McNemar 1947; pairs on which both agree do not tell which one is better.
    """
    count = only_baseline + only_other
    tail = sum(math.comb(count, k) for k in range(min(only_baseline, only_other) + 1))
    return min(1.0, 2 * tail / (1 << count))


def sign_flip(differences: Sequence[int]) -> float:
    """Exact two-sided p of net differences: P(|sum s_i d_i| >= |sum d_i|), s_i = +-1 fair.

    Fisher 1935, section 21: if neither run is better, the outcomes of a problem are equally likely
    to belong to either run. Equals `mcnemar` if every d_i is -1, 0 or 1.
    """
    sizes = [abs(value) for value in differences if value]
    chances = np.ones(1)  # of each sum from -n to n
    for size in sizes:
        gap = np.zeros(2 * size)
        chances = (np.concatenate([chances, gap]) + np.concatenate([gap, chances])) / 2
    sums = np.arange(len(chances)) - sum(sizes)
    return min(1.0, float(chances[abs(sums) >= abs(sum(differences))].sum()))


def wilson(mean: float, count: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927): accurate at 0, at 1 and for few samples."""
    spread = Z95 * math.sqrt(mean * (1 - mean) / count + Z95**2 / (4 * count**2))
    centre, scale = mean + Z95**2 / (2 * count), 1 + Z95**2 / count
    # At 0 and at 1 one end is the mean, which rounding would miss.
    low = 0.0 if mean <= 0 else (centre - spread) / scale
    high = 1.0 if mean >= 1 else (centre + spread) / scale
    return max(0.0, low), min(1.0, high)


def bca(value: float, replicates: Floats, left_one_out: Floats) -> tuple[float, float]:
    """Bias-corrected and accelerated 95% interval of resampled values.

    Its ends are quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the replicates, z = -+1.96.
    Phi(z0) is the share of replicates below the value, and a = sum d^3 / (6 (sum d^2)^1.5), where d
    is the mean of the leave-one-out values less each of them (Efron 1987; Efron and Tibshirani
    1993, 14.3). Second-order accurate, also for ratios, whose replicates are skewed.
    """
    normal = NormalDist()
    below = np.count_nonzero(replicates < value) + np.count_nonzero(replicates == value) / 2
    # At least half a replicate on either side: the quantiles of 0 and 1 are infinite.
    share = min(max(below, 0.5), len(replicates) - 0.5) / len(replicates)
    bias = normal.inv_cdf(share)
    d = left_one_out.mean() - left_one_out
    spread = math.sqrt(np.sum(d**2)) ** 3
    acceleration = float(np.sum(d**3)) / (6 * spread) if spread else 0.0
    levels = []
    for z in (normal.inv_cdf(0.025), normal.inv_cdf(0.975)):
        shifted = bias + z
        levels.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def resample(sums: Floats, resamples: int, seed: int) -> Floats:
    """Totals of resamples, each with as many problems as there are, drawn with replacement.

    `sums` are the sums over the samples of each problem, [problems, C]. Returns [resamples, C].
    """
    random = np.random.default_rng(seed)
    problems = len(sums)
    most = max(1, CHUNK // problems)
    parts = []
    for first in range(0, resamples, most):
        rows = min(most, resamples - first)
        drawn = (
            random.integers(problems, size=(rows, problems)) + problems * np.arange(rows)[:, None]
        )
        times = np.bincount(drawn.ravel(), minlength=rows * problems).reshape(rows, problems)
        parts.append(times @ sums)
    return np.concatenate(parts)


def estimate_where(
    statistic: Callable[[Floats], Floats],
    sums: Floats,
    drawn: Floats,
    draw: Callable[[Floats], Floats],
) -> Estimate:
    """Estimate a statistic over the problems whose first column is not zero.

    The other problems do not count. If there are any, new resamples are drawn.
    """
    some = sums[sums[:, 0] > 0]
    return estimate(statistic, some, drawn if len(some) == len(sums) else draw(some))


def estimate(statistic: Callable[[Floats], Floats], sums: Floats, drawn: Floats) -> Estimate:
    """A statistic of totals, with its interval from the totals of resamples."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(0)))
        replicates = statistic(drawn)
        left_one_out = statistic(sums.sum(0) - sums)
    if not math.isfinite(value):
        return Estimate(None, None)
    finite = np.isfinite(replicates).all() and np.isfinite(left_one_out).all()
    if len(sums) < 2 or not finite or np.ptp(replicates) <= ROUNDING * max(1.0, abs(value)):
        return Estimate(value, None)
    return Estimate(value, bca(value, replicates, left_one_out))
