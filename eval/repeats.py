"""What several samples of a problem tell that one does not: pass@k and majority votes.

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
    ("n", "samples; in comparisons pairs, each with the means of its samples"),
    ("score", "share of a problem's samples that are right, mean over problems: pass@1"),
    (
        "pass@k",
        "chance that of k samples of a problem at least one is right: 1 - C(n - c, k) / C(n, k) "
        "where c of its n samples are, without bias (Chen et al. 2021, arXiv:2107.03374); mean "
        "over the problems that have k samples",
    ),
    (
        "maj@n",
        "chance that what most of a problem's n samples answer is right (self-consistency, Wang "
        "et al. 2022, arXiv:2203.11171): where nothing is read there is no vote, what is spelled "
        "alike is one answer, the lot decides between answers with as many votes; mean over the "
        "problems that have all samples",
    ),
    (
        "95%",
        "of a score, pass@k and maj@n: BCa bootstrap (Efron 1987) of 10,000 resamples of the "
        "problems that count, a problem with all its samples at a time; Wilson's interval (1927) "
        "for as many problems where each has one sample, or where resampling changes nothing",
    ),
)
"""What columns mean where problems have several samples; see `definitions`."""

HEAD = ("decoder", "template", "measure", "problems", "value", "95%")
"""Columns of the table of measures."""

Group = Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a group, such as pass@4."""

    kind: str  # `PASS` or `MAJORITY`
    k: int  # samples
    of: Callable[[Group], float | None]  # None of a group with fewer samples

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.kind}@{self.k}"


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure over the problems of a run that have enough samples."""

    measure: Measure
    problems: int
    value: float | None  # None without a problem
    interval: tuple[float, float] | None  # 95%


def definitions(measures: Iterable[Measure], *, compared: bool = False) -> list[tuple[str, str]]:
    """What is to be said of tables with several samples, beside the columns of all tables.

    Args:
        measures: those that have a row.
        compared: whether there are but differences of them, whose intervals are other ones.
    """
    shown = {"n", "score", *(() if compared else ("95%",)), *(each.kind for each in measures)}
    return [(term, told) for term, told in DEFINITIONS if term.partition("@")[0] in shown]


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that k of some samples, drawn without replacement, have a right one among them.

    1 - C(n - c, k) / C(n, k): an unbiased estimate of 1 - (1 - p)^k, unlike 1 - (1 - c / n)^k
    (Chen et al. 2021, arXiv:2107.03374, Eq. 1). In whole numbers up to one division, so that it
    is the nearest float for any n.

    Args:
        samples: n, how many there are.
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
    """Chance that the answer with most of n votes is right, with a draw between equals."""
    if len(group) < n:
        return None
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for each in group:
        if each.vote is not None:
            scores[each.vote].append(each.score)
    most = max(map(len, scores.values()), default=0)
    return mean([mean(row) for row in scores.values() if len(row) == most]) if most else 0.0


def mean(values: Sequence[float]) -> float:
    """Of one or more."""
    return sum(values) / len(values)


def usual(samples: int) -> list[int]:
    """The k of pass@k for so many samples: powers of two, and all of them."""
    return sorted({1 << power for power in range(samples.bit_length())} | {samples})


def chosen(pass_at: Sequence[int], samples: int) -> list[int]:
    """The k of pass@k: 1 and those given, or the usual ones; no more than there are samples."""
    return sorted(k for k in {1, *(pass_at or usual(samples))} if k <= samples)


def check_pass_at(pass_at: Sequence[int], samples: int) -> None:
    """Refuse a k that no run has samples for.

    Raises:
        ValueError: it is no int from 1, or above `samples`.
    """
    for k in pass_at:
        if integer("--pass-at", k, least=1) > samples:
            raise ValueError(
                f"--pass-at must be at most the samples of a problem, which are {samples}, got {k}"
            )


def measures_of(run: Run, pass_at: Sequence[int] = ()) -> list[Measure]:
    """What can be said of a run: pass@k, and majority votes where answers are read out."""
    found = [Measure(PASS, k, partial(passed, k=k)) for k in chosen(pass_at, run.repeats)]
    if run.repeats > 1 and "execution" not in run.settings:
        found.append(Measure(MAJORITY, run.repeats, partial(majority, n=run.repeats)))
    return found


def figures(groups: Sequence[Group], measures: Sequence[Measure]) -> list[Figure]:
    """Measures over groups, resampled by problem.

    Wilson's intervals where each group has one sample, for as many samples as there are problems:
    right if templates of a problem change nothing, else too wide.
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
    """What the groups of each problem add up to, [problems, 2 x measures]: how many, and value."""
    rows: defaultdict[int, list[list[float]]] = defaultdict(list)
    for group in groups:
        values = [measure.of(group) for measure in measures]
        rows[group[0].index].append(
            [x for v in values for x in ((0.0, 0.0) if v is None else (1.0, v))]
        )
    return np.array([np.sum(row, axis=0) for row in rows.values()], dtype=np.float64)


def share(totals: Floats) -> Floats:
    """Mean value, over totals [..., 2]."""
    return totals[..., 1] / totals[..., 0]
