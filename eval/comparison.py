"""Comparison of runs with a baseline, problem by problem: differences, uncertainty and cost.

Both runs have decoded the same problems, so their samples of one problem under one template form a
pair. Only pairs are compared; several samples count by their mean. The pairs of one problem under
different templates are not independent. The bootstrap therefore resamples whole problems, and the
sign-flip test flips whole problems, each with all its pairs.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dlm.eval.folder import Run
from dlm.eval.inference import (
    RESAMPLES,
    Estimate,
    Floats,
    estimate,
    estimate_where,
    mcnemar,
    resample,
    sign_flip,
)
from dlm.eval.repeats import Measure, check_pass_at, mean, measures_of
from dlm.eval.sample import Prompt, Sample, by_prompt
from dlm.options import integer

ALL = "all"
"""Stands for all templates together; no template has this name."""

METHODS = (
    (
        "points",
        "score minus the baseline's score, in percentage points, over the same pairs: a problem "
        "under a template, with the mean of its samples if it has several",
    ),
    (
        "95% of points and ratios",
        "BCa bootstrap interval (Efron 1987) from 10,000 resamples of the problems, each with all "
        "its templates and samples; omitted if resampling changes nothing",
    ),
    (
        "p",
        "two-sided exact McNemar test (1947) of the pairs that only one run gets right; over all "
        "templates, and with several samples, the exact sign-flip test of problems (Fisher "
        "1935), which is the same for one sample each; omitted if problems differ in their number "
        "of samples, within a run or between runs; not corrected for the number of comparisons",
    ),
    (
        "ratio",
        "of the run to the baseline, over the pairs that both decoded; no ratio of seconds if "
        "device, dtype, batch size, processes or threads differ; its interval is over problems, "
        "each timed once, and does not cover how a machine's speed varies",
    ),
    (
        "left out",
        "samples of problems that only the baseline has, and of problems that only the run has",
    ),
    (
        "only one right",
        "pairs that only the baseline gets right, and pairs that only the run gets right; with "
        "several samples, those with the larger share of right samples",
    ),
)
"""How runs are compared; printed with every comparison."""

NAME_LENGTH = 60  # characters of a run's name in tables

Pair = tuple[list[Sample], list[Sample]]
"""All samples of one prompt, from the baseline and from the other run."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A measure of several samples, such as pass@4, in both runs."""

    measure: Measure
    pairs: int
    scores: tuple[float, float]  # of the baseline and the other run, over the pairs
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run compared with the baseline, under one template or over all of them."""

    baseline: str
    other: str
    template: str
    pairs: int
    problems: int
    left_out: tuple[int, int]  # samples that only the baseline has, and only the other run
    scores: tuple[float, float]  # of the baseline and the other run, over the pairs
    discordant: tuple[int, int]  # pairs where the baseline is right more often, and the other run
    p: float | None
    difference: Estimate  # of the scores
    forwards: Estimate  # ratio of forward passes per row
    response_tokens_per_forward: Estimate  # ratio
    seconds: Estimate  # ratio
    contrasts: tuple[Contrast, ...] = ()  # only if both runs have several samples per problem


def compare(
    runs: Sequence[Run],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    pass_at: Sequence[int] = (),
) -> list[Comparison]:
    """Compare every run with the first: under each template that both have, and over all of them.

    Args:
        runs: the baseline and the other runs, of one task and the same data.
        resamples: bootstrap resamples for every interval.
        seed: seed of the resamples; every comparison starts from this seed.
        pass_at: k of each pass@k; powers of two if empty. A k above the number of samples in either
            run is left out.

    Raises:
        ValueError: fewer than two runs, runs of different tasks or data, no common sample,
            different prompts for one problem, or a k for which no two runs have enough samples.
    """
    if len(runs) < 2:
        raise ValueError(f"compare needs at least two runs, got {len(runs)}")
    integer("resamples", resamples, least=1)
    integer("seed", seed, least=0, most=2**63 - 1)
    check_pass_at(pass_at, min(runs[0].repeats, max(run.repeats for run in runs[1:])))
    names = labels(runs)
    found = []
    for run, name in zip(runs[1:], names[1:], strict=True):
        rows = compare_pair(
            runs[0], run, (names[0], name), resamples=resamples, seed=seed, pass_at=pass_at
        )
        if not rows:
            raise ValueError(f"compare needs samples that {names[0]} and {name} both have")
        found += rows
    return found


def labels(runs: Sequence[Run]) -> list[str]:
    """Names for runs of one task and the same data: the decoder, and the folder where needed.

    Raises:
        ValueError: a folder is given twice, or the runs differ in task, task version or data.
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
    """Refuse runs that differ in a setting.

    Raises:
        ValueError: the values differ.
    """
    first, *others = values.items()
    for folder, value in others:
        if value != first[1]:
            raise ValueError(
                f"runs must be of one {what}, got {first[1]!r} in {first[0]} "
                f"and {value!r} in {folder}"
            )


def short(name: str) -> str:
    """A name on one line, shortened if it is long."""
    flat = " ".join(name.split())
    return flat if len(flat) <= NAME_LENGTH else flat[: NAME_LENGTH - 3] + "..."


def compare_pair(
    baseline: Run,
    other: Run,
    names: tuple[str, str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    pass_at: Sequence[int] = (),
) -> list[Comparison]:
    """Compare two runs under each template with pairs, and over all if a run has several.

    The result is empty if there is no pair. `names` are the names of the two runs.
    """
    left, right = by_prompt(baseline.samples), by_prompt(other.samples)
    measures = shared_measures(baseline, other, pass_at)
    groups = [(template, [template]) for template in baseline.templates]
    every = [*dict.fromkeys(baseline.templates + other.templates)]
    found = []
    for template, members in [*groups, (ALL, every)]:
        keys = sorted(key for key in left.keys() & right.keys() if key[0] in members)
        if not keys or (template == ALL and len(every) == 1):
            continue
        pairs = [(left[key], right[key]) for key in keys]
        for (one, *_), (two, *_) in pairs:
            if asked(one.prompt) != asked(two.prompt):
                raise ValueError(
                    f"runs must put one prompt for a problem: {baseline.folder} and {other.folder} "
                    f"differ at problem {one.id!r} of template {one.template!r}"
                )
        out = only(left, right, members), only(right, left, members)
        timed = pace(baseline) == pace(other)
        draw = partial(resample, resamples=resamples, seed=seed)
        found.append(comparison((*names, template), pairs, out, draw, measures, timed=timed))
    return found


def asked(prompt: Any) -> Any:
    """A prompt; in texts, without the number of blanks, which depends on the tokenizer."""
    return re.sub(r"\[MASK:[0-9]+\]", "[MASK]", prompt) if isinstance(prompt, str) else prompt


def shared_measures(baseline: Run, other: Run, pass_at: Sequence[int]) -> list[Measure]:
    """The measures of several samples that both runs have, besides pass@1."""
    names = {each.name for each in measures_of(other, pass_at)}
    return [each for each in measures_of(baseline, pass_at) if each.k > 1 and each.name in names]


def pace(run: Run) -> list[Any]:
    """What decoding time depends on besides the decoder."""
    names = ("batch_size", "processes", "threads", "machine")
    starts = [[start.get(name) for name in names] for start in run.launches]
    one = [each for n, each in enumerate(starts) if each not in starts[:n]]
    return [run.settings["device"], run.settings["dtype"], one]


def only(
    some: Mapping[Prompt, list[Sample]], others: Collection[Prompt], templates: Sequence[str]
) -> int:
    """Count the samples of some templates whose prompts only `some` has."""
    return sum(len(some[key]) for key in some if key[0] in templates and key not in others)


def comparison(
    names: tuple[str, str, str],
    pairs: Sequence[Pair],
    left_out: tuple[int, int],
    draw: Callable[[Floats], Floats],
    measures: Sequence[Measure] = (),
    *,
    timed: bool,
) -> Comparison:
    """Compute the figures of some pairs; the ratio of seconds only if `timed`."""
    sums = problem_sums(pairs, measures)
    count, left, right = sums.sum(0)[:3]
    ahead = [score_of(two) - score_of(one) for one, two in pairs]
    discordant = sum(each < 0 for each in ahead), sum(each > 0 for each in ahead)
    drawn = draw(sums)
    return Comparison(
        *names,
        pairs=len(pairs),
        problems=len(sums),
        left_out=left_out,
        scores=(float(left / count), float(right / count)),
        discordant=discordant,
        p=p_of(pairs, sums, discordant),
        difference=estimate(score_difference, sums, drawn),
        forwards=estimate(forwards_ratio, sums, drawn),
        response_tokens_per_forward=estimate(response_tokens_per_forward_ratio, sums, drawn),
        seconds=estimate(seconds_ratio, sums, drawn) if timed else Estimate(None, None),
        contrasts=tuple(contrasts(measures, sums, drawn, draw)),
    )


def score_of(group: Sequence[Sample]) -> float:
    """The mean score of samples."""
    return mean([each.score for each in group])


def p_of(pairs: Sequence[Pair], sums: Floats, discordant: tuple[int, int]) -> float | None:
    """The p-value of the difference if neither run is better; None if no test applies.

    The sign-flip test assumes that the samples of a problem could be swapped between the runs, so
    every problem must have the same number of samples in both. If all problems have equally many,
    differences are whole numbers of samples.
    """
    sizes = {len(group) for pair in pairs for group in pair}
    if len(sizes) > 1:
        return None
    (size,) = sizes
    if size == 1 and len(sums) == len(pairs):
        return mcnemar(*discordant)
    return sign_flip([round(value) for value in size * (sums[:, 2] - sums[:, 1])])


def contrasts(
    measures: Sequence[Measure], sums: Floats, drawn: Floats, draw: Callable[[Floats], Floats]
) -> Iterator[Contrast]:
    """Yield the measures that some pair has, from the columns after the first nine."""
    for number, measure in enumerate(measures):
        part = slice(9 + 3 * number, 12 + 3 * number)
        count, left, right = sums[:, part].sum(0)
        if count:
            difference = estimate_where(score_difference, sums[:, part], drawn[:, part], draw)
            scores = float(left / count), float(right / count)
            yield Contrast(measure, int(count), scores, difference)


def problem_sums(pairs: Iterable[Pair], measures: Sequence[Measure] = ()) -> Floats:
    """Sums over the pairs of each problem, [problems, 9 + 3 x measures].

    The columns are the number of pairs; then score, forward passes, response tokens and seconds,
    each for the baseline and the other run; then for each measure the pairs that have it, and its
    two values. Several samples count by their mean. A prompt that was too long for one of the
    models counts as failed, but is left out of the costs.
    """
    rows: defaultdict[int, list[list[float]]] = defaultdict(list)
    for pair in pairs:
        decoded = all(each.forwards for group in pair for each in group)
        figures = [
            [score_of(group)]
            + [
                decoded * mean([getattr(each, name) for each in group])
                for name in ("forwards", "response_tokens", "seconds")
            ]
            for group in pair
        ]
        row = [1.0, *(x for both in zip(*figures, strict=True) for x in both)]
        for measure in measures:
            one, two = map(measure.of, pair)
            row += [0.0, 0.0, 0.0] if one is None or two is None else [1.0, one, two]
        rows[pair[0][0].index].append(row)
    return np.array([np.sum(row, axis=0) for row in rows.values()], dtype=np.float64)


def score_difference(totals: Floats) -> Floats:
    """Mean score of the other run less that of the baseline, from totals [..., 9]."""
    return (totals[..., 2] - totals[..., 1]) / totals[..., 0]


def forwards_ratio(totals: Floats) -> Floats:
    """Forward passes per row, other over baseline, from totals [..., 9]."""
    return totals[..., 4] / totals[..., 3]


def response_tokens_per_forward_ratio(totals: Floats) -> Floats:
    """Response tokens per forward pass, other over baseline, from totals [..., 9]."""
    return totals[..., 6] * totals[..., 3] / (totals[..., 5] * totals[..., 4])


def seconds_ratio(totals: Floats) -> Floats:
    """Seconds of decoding, other over baseline, from totals [..., 9]."""
    return totals[..., 8] / totals[..., 7]
