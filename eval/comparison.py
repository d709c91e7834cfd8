"""Runs against a baseline, problem by problem: how much better, how sure, and at what cost.

Both runs decoded the same problems, so the samples of one template and one problem make a pair,
and only pairs are compared. Templates of one problem are not independent of each other: what is
resampled, and what changes sign, is the problem with all its pairs.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlm.eval.folder import Run
from dlm.eval.inference import (
    RESAMPLES,
    Estimate,
    Floats,
    estimate,
    mcnemar,
    resample,
    sign_flip,
)
from dlm.eval.sample import Key, Sample
from dlm.options import integer

ALL = "all"
"""The template of a comparison over all templates; no template is called so."""

METHODS = (
    ("points", "score less the score of the baseline, in percentage points, over the same pairs"),
    (
        "95% of points and ratios",
        "BCa bootstrap (Efron 1987) of 10,000 resamples of the problems, a problem with all its "
        "templates and both its samples at a time; none is given where resampling changes nothing",
    ),
    (
        "p",
        "exact McNemar test (1947), two-sided, of the pairs where just one run is right; over all "
        "templates together the exact sign-flip test of problems (Fisher 1935), which is the same "
        "for one template; not corrected for the number of comparisons",
    ),
    (
        "ratio",
        "of the run to the baseline, over the same pairs; those that both decoded. None of seconds "
        "where device, dtype, batch size, processes or threads differ",
    ),
    ("left out", "samples that only the baseline has, and those that only the other run has"),
    ("only one right", "pairs where just the baseline is right, and where just the other run is"),
)
"""How runs are compared; every page that compares prints it."""

NAME_LENGTH = 60  # characters of a run's name in tables

Pair = tuple[Sample, Sample]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run against the baseline, under one template or over all of them."""

    baseline: str
    other: str
    template: str
    pairs: int
    problems: int
    left_out: tuple[int, int]  # samples that only the baseline has, and only the other one
    scores: tuple[float, float]  # of the baseline and of the other one, over the pairs
    discordant: tuple[int, int]  # pairs where only the baseline is right, and only the other one
    p: float
    difference: Estimate  # of the scores
    forwards: Estimate  # ratio of forwards per row
    response_tokens_per_forward: Estimate  # ratio
    seconds: Estimate  # ratio


def compare(runs: Sequence[Run], *, resamples: int = RESAMPLES, seed: int = 0) -> list[Comparison]:
    """Compare every run with the first one: under each template that both have, and over all.

    Args:
        runs: the baseline and the others, of one task and the same data.
        resamples: bootstrap resamples of every interval.
        seed: decides the resamples; each comparison draws its own from the start.

    Raises:
        ValueError: fewer than two runs, runs that do not belong together, no common sample, or
            another prompt for one problem.
    """
    if len(runs) < 2:
        raise ValueError(f"compare needs at least two runs, got {len(runs)}")
    integer("resamples", resamples, least=1)
    integer("seed", seed, least=0, most=2**63 - 1)
    names = labels(runs)
    found = []
    for run, name in zip(runs[1:], names[1:], strict=True):
        rows = compare_pair(runs[0], run, (names[0], name), resamples=resamples, seed=seed)
        if not rows:
            raise ValueError(f"compare needs samples that {names[0]} and {name} both have")
        found += rows
    return found


def labels(runs: Sequence[Run]) -> list[str]:
    """What to call runs of one task and the same data: the decoder, and the folder if need be.

    Raises:
        ValueError: a folder given twice; runs of other tasks, task versions or data.
    """
    require_same("task", {str(run.folder): run.settings["task"] for run in runs})
    require_same("task version", {str(run.folder): run.settings["task_version"] for run in runs})
    require_same("data", {str(run.folder): run.settings["data"]["sha256"] for run in runs})
    places = [run.folder.resolve() for run in runs]
    if len(set(places)) != len(places):
        raise ValueError(f"runs must differ, got {', '.join(str(run.folder) for run in runs)}")
    names = [short(run.name) for run in runs]
    ends = [f"{name} [{place.name}]" for name, place in zip(names, places, strict=True)]
    return [
        name if names.count(name) == 1 else end if ends.count(end) == 1 else f"{name} [{place}]"
        for name, end, place in zip(names, ends, places, strict=True)
    ]


def require_same(what: str, values: Mapping[str, Any]) -> None:
    """Refuse runs that differ in something.

    Raises:
        ValueError: they do.
    """
    first, *others = values.items()
    for folder, value in others:
        if value != first[1]:
            raise ValueError(
                f"runs must be of one {what}, got {first[1]!r} in {first[0]} "
                f"and {value!r} in {folder}"
            )


def short(name: str) -> str:
    """A name on one line, cut where it is long."""
    flat = " ".join(name.split())
    return flat if len(flat) <= NAME_LENGTH else flat[: NAME_LENGTH - 3] + "..."


def compare_pair(
    baseline: Run, other: Run, names: tuple[str, str], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Comparison]:
    """A comparison for each template with pairs, and one over all where a run has several.

    Empty without a pair. `names` are those of the two runs.
    """
    left = {each.key: each for each in baseline.samples}
    right = {each.key: each for each in other.samples}
    groups = [(template, [template]) for template in baseline.templates]
    every = [*dict.fromkeys(baseline.templates + other.templates)]
    found = []
    for template, members in [*groups, (ALL, every)]:
        keys = sorted(key for key in left.keys() & right.keys() if key[0] in members)
        if not keys or (template == ALL and len(every) == 1):
            continue
        pairs = [(left[key], right[key]) for key in keys]
        for one, two in pairs:
            if one.prompt != two.prompt:
                raise ValueError(
                    f"runs must put one prompt for a problem: {baseline.folder} and {other.folder} "
                    f"differ at problem {one.id!r} of template {one.template!r}"
                )
        out = only(left, right, members), only(right, left, members)
        timed = pace(baseline) == pace(other)
        found.append(comparison((*names, template), pairs, out, resamples, seed, timed=timed))
    return found


def pace(run: Run) -> list[Any]:
    """What seconds depend on besides the decoder."""
    names = ("batch_size", "processes", "threads", "machine")
    starts = [[start.get(name) for name in names] for start in run.launches]
    one = [each for n, each in enumerate(starts) if each not in starts[:n]]
    return [run.settings["device"], run.settings["dtype"], one]


def only(some: Iterable[Key], others: Iterable[Key], templates: Sequence[str]) -> int:
    """How many samples of some templates are in `some` alone."""
    return sum(template in templates for template, _ in set(some) - set(others))


def comparison(
    names: tuple[str, str, str],
    pairs: Sequence[Pair],
    left_out: tuple[int, int],
    resamples: int,
    seed: int,
    *,
    timed: bool,
) -> Comparison:
    """The figures of some pairs; no ratio of seconds unless they can be compared."""
    sums = problem_sums(pairs)
    count, left, right = sums.sum(0)[:3]
    discordant = sum(a.score > b.score for a, b in pairs), sum(a.score < b.score for a, b in pairs)
    net = [round(value) for value in sums[:, 2] - sums[:, 1]]
    drawn = resample(sums, resamples, np.random.default_rng(seed))
    return Comparison(
        *names,
        pairs=len(pairs),
        problems=len(sums),
        left_out=left_out,
        scores=(float(left / count), float(right / count)),
        discordant=discordant,
        p=mcnemar(*discordant) if len(sums) == len(pairs) else sign_flip(net),
        difference=estimate(score_difference, sums, drawn),
        forwards=estimate(forwards_ratio, sums, drawn),
        response_tokens_per_forward=estimate(response_tokens_per_forward_ratio, sums, drawn),
        seconds=estimate(seconds_ratio, sums, drawn) if timed else Estimate(None, None),
    )


def problem_sums(pairs: Iterable[Pair]) -> Floats:
    """What the pairs of each problem add up to, [problems, 9].

    Pairs, then of the baseline and of the other run: score, forwards, response tokens, seconds.
    A prompt that was too long for one of the models failed, but tells nothing about cost.
    """
    rows: defaultdict[int, list[list[float]]] = defaultdict(list)
    for pair in pairs:
        decoded = all(each.forwards for each in pair)
        figures = [
            [each.score]
            + [decoded * x for x in (each.forwards, each.response_tokens, each.seconds)]
            for each in pair
        ]
        rows[pair[0].index].append([1, *(x for both in zip(*figures, strict=True) for x in both)])
    return np.array([np.sum(row, axis=0) for row in rows.values()], dtype=np.float64)


def score_difference(totals: Floats) -> Floats:
    """Mean score of the other run less that of the baseline, over totals [..., 9]."""
    return (totals[..., 2] - totals[..., 1]) / totals[..., 0]


def forwards_ratio(totals: Floats) -> Floats:
    """Forwards per row of the other run over those of the baseline, over totals [..., 9]."""
    return totals[..., 4] / totals[..., 3]


def response_tokens_per_forward_ratio(totals: Floats) -> Floats:
    """Response tokens per forward, other over baseline, over totals [..., 9]."""
    return totals[..., 6] * totals[..., 3] / (totals[..., 5] * totals[..., 4])


def seconds_ratio(totals: Floats) -> Floats:
    """Seconds of decoding, other over baseline, over totals [..., 9]."""
    return totals[..., 8] / totals[..., 7]
