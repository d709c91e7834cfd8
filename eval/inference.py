"""Exact tests of paired outcomes, and bootstrap intervals."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def mcnemar(only_baseline: int, only_other: int) -> float:
    """Exact two-sided p of discordant pairs: min(1, 2 P(X <= min(b, c))), X ~ B(b + c, 1/2).

    McNemar 1947; pairs on which both agree say nothing about which one is better.
    """
    count = only_baseline + only_other
    tail = sum(math.comb(count, k) for k in range(min(only_baseline, only_other) + 1))
    return min(1.0, 2 * tail / (1 << count))


def sign_flip(differences: Sequence[int]) -> float:
    """Exact two-sided p of net differences: P(|sum s_i d_i| >= |sum d_i|), s_i = +-1 fair.

    Fisher 1935, section 21: if the runs are as good as each other, which of the two a problem's
    outcome belongs to is a toss. Equals `mcnemar` where every d_i is -1, 0 or 1.
    """
    sizes = [abs(value) for value in differences if value]
    chances = np.ones(1)  # of each sum from -n to n
    for size in sizes:
        gap = np.zeros(2 * size)
        chances = (np.concatenate([chances, gap]) + np.concatenate([gap, chances])) / 2
    sums = np.arange(len(chances)) - sum(sizes)
    return min(1.0, float(chances[abs(sums) >= abs(sum(differences))].sum()))


def bca(value: float, replicates: Floats, left_one_out: Floats) -> tuple[float, float]:
    """Bias-corrected and accelerated 95% interval of resampled values.

    Quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the replicates, z = -+1.96, with
    Phi(z0) the share of replicates below the value and a = sum d^3 / (6 (sum d^2)^1.5), d the
    mean of the leave-one-out values less each of them (Efron 1987; Efron and Tibshirani 1993,
    14.3). Second-order accurate, also for ratios, whose replicates are skewed.
    """
    normal = NormalDist()
    below = np.count_nonzero(replicates < value) + np.count_nonzero(replicates == value) / 2
    # Half a replicate at least on either side: the quantiles of 0 and 1 are infinite.
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
