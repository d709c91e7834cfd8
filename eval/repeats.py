"""Measures of several samples per problem: pass@k and majority votes.

A group is all samples of one prompt: of one problem under one template.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dlm.eval.folder import Run
from dlm.eval.inference import (
    RESAMPLES,
    Estimate,
    Floats,
    estimate_where,
    resample,
    wilson,
)
from dlm.eval.sample import Sample
from dlm.options import integer

PASS, MAJORITY = "pass", "maj"

DEFINITIONS = (
    ("n", "number of samples; in comparisons, number of pairs, each with the means of its samples"),
    ("score", "share of a problem's samples that are right, mean over problems: pass@1"),
    (
        "pass@k",
        "probability that at least one of k samples of a problem is right: the unbiased estimate "
        "1 - C(n - c, k) / C(n, k) if c of its n samples are right (Chen et al. 2021, "
        "arXiv:2107.03374); mean over the problems that have k samples",
    ),
    (
        "maj@n",
        "probability that the most frequent answer among a problem's n samples is right "
        "(self-consistency, Wang et al. 2022, arXiv:2203.11171): samples without an extracted "
        "answer do not vote, answers with the same spelling are the same answer, and ties are "
        "broken at random; mean over the problems that have all samples",
    ),
    (
        "95%",
        "interval of a score, pass@k or maj@n: BCa bootstrap (Efron 1987) of 10,000 resamples of "
        "the problems that count, each problem with all its samples; Wilson's interval (1927) for"
        " as many problems if each has one sample, or if resampling changes nothing",
    ),
)
"""Meanings of columns if problems have several samples; see `definitions`."""

HEAD = ("decoder", "template", "measure", "problems", "value", "95%")
"""Columns of the table of measures."""

Group = Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a group, such as pass@4."""

    kind: str  # `PASS` or `MAJORITY`
    k: int  # number of samples
    of: Callable[[Group], float | None]  # None for a group with fewer samples

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.kind}@{self.k}"


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure over the problems of a run that have enough samples."""

    measure: Measure
    problems: int
    value: float | None  # None if there is no such problem
    interval: tuple[float, float] | None  # 95%


def definitions(measures: Iterable[Measure], *, compared: bool = False) -> list[tuple[str, str]]:
    """The definitions that tables with several samples need, besides those of all tables.

    Args:
        measures: the measures with a row.
        compared: whether the tables only have differences, whose intervals are defined elsewhere.
    """
    shown = {"n", "score", *(() if compared else ("95%",)), *(each.kind for each in measures)}
    return [(term, told) for term, told in DEFINITIONS if term.partition("@")[0] in shown]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that k samples, drawn without replacement, include a right one.

    1 - C(n - c, k) / C(n, k): an unbiased estimate of 1 - (1 - p)^k, unlike 1 - (1 - c / n)^k (Chen
    et al. 2021, arXiv:2107.03374, Eq. 1). Computed in integers up to a single division, so that the
    result is the nearest float for any n.

    Args:
        samples: n, the number of samples.
        right: c, how many of them are right.
        k: how many are drawn.

    Raises:
        ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    integer("samples", samples, least=1)
    integer("right", right, least=0, most=samples)
    integer("k", k, least=1, most=samples)
    all_ = math.comb(samples, k)
    return (all_ - math.comb(samples - right, k)) / all_


def passed(group: Group, k: int) -> float | None:
    """pass@k of a group."""
    if len(group) < k:
        return None
    return pass_at_k(len(group), sum(each.score == 1 for each in group), k)


def majority(group: Group, n: int) -> float | None:
    """Chance that the answer with the most of n votes is right; ties are broken at random."""
    if len(group) < n:
        return None
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for each in group:
        if each.vote is not None:
            scores[each.vote].append(each.score)
    most = max(map(len, scores.values()), default=0)
    return mean([mean(row) for row in scores.values() if len(row) == most]) if most else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean of one or more values."""
    return sum(values) / len(values)


def usual(samples: int) -> list[int]:
    """The usual k of pass@k: powers of two up to the number of samples, and that number."""
    return sorted({1 << power for power in range(samples.bit_length())} | {samples})


def chosen(pass_at: Sequence[int], samples: int) -> list[int]:
    """The k of pass@k: 1 and those given, else the usual ones; none above the number of samples."""
    return sorted(k for k in {1, *(pass_at or usual(samples))} if k <= samples)


def check_pass_at(pass_at: Sequence[int], samples: int) -> None:
    """Refuse a k above the number of samples.

    Raises:
        ValueError: a k is not an int >= 1, or above `samples`.
    """
    for k in pass_at:
        if integer("--pass-at", k, least=1) > samples:
            raise ValueError(
                f"--pass-at must be at most the samples of a problem, which are {samples}, got {k}"
            )


def measures_of(run: Run, pass_at: Sequence[int] = ()) -> list[Measure]:
    """The measures of a run: pass@k, and majority votes if answers are extracted."""
    found = [Measure(PASS, k, partial(passed, k=k)) for k in chosen(pass_at, run.repeats)]
    if run.repeats > 1 and "execution" not in run.settings:
        found.append(Measure(MAJORITY, run.repeats, partial(majority, n=run.repeats)))
    return found


def figures(groups: Sequence[Group], measures: Sequence[Measure]) -> list[Figure]:
    """Measures over groups, resampled by problem.

    If each group has one sample, Wilson's interval for as many samples as there are problems is
    used. It is exact if the templates of a problem give the same results, else too wide.
    """
    single = all(len(group) == 1 for group in groups)
    draw = partial(resample, resamples=RESAMPLES, seed=0)
    sums = measure_sums(groups, measures)
    drawn = sums if single else draw(sums)
    found = []
    for number, measure in enumerate(measures):
        part = slice(2 * number, 2 * number + 2)
        problems = int(np.count_nonzero(sums[:, 2 * number]))
        if not problems:
            found.append(Figure(measure, 0, None, None))
            continue
        told = Estimate(float(share(sums[:, part].sum(0))), None)
        if not single:
            told = estimate_where(share, sums[:, part], drawn[:, part], draw)
        assert told.value is not None
        interval = told.interval or wilson(told.value, problems)
        found.append(Figure(measure, problems, told.value, interval))
    return found


def measure_sums(groups: Sequence[Group], measures: Sequence[Measure]) -> Floats:
    """Sums over the groups of each problem, [problems, 2 x measures]: number and value."""
    rows: defaultdict[int, list[list[float]]] = defaultdict(list)
    for group in groups:
        values = [measure.of(group) for measure in measures]
        rows[group[0].index].append(
            [x for v in values for x in ((0.0, 0.0) if v is None else (1.0, v))]
        )
    return np.array([np.sum(row, axis=0) for row in rows.values()], dtype=np.float64)


def share(totals: Floats) -> Floats:
    """The mean value, from totals [..., 2]."""
    return totals[..., 1] / totals[..., 0]
