"""Scoring: what each metric reads in an output, and its score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dlm.eval.extract import without_thoughts
from dlm.eval.task import Check, Metric, Problem, Task

NOTHING = "no code found"


class Outcome(Protocol):
    """How running a check ended."""

    @property
    def passed(self) -> bool:
        """Whether the tests ended without an exception."""

    @property
    def kind(self) -> str:
        """One word: passed, failed, timeout, ..."""

    @property
    def detail(self) -> str:
        """The message, if any."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of all metrics of a task for one output."""

    extracted: dict[str, str | None]  # by metric
    scores: dict[str, float]  # by metric, 0 to 1
    score: float  # of the first metric
    vote: str | None  # of the first metric
    detail: str  # how the first metric's code ended; "" without code


@dataclass(frozen=True, slots=True)
class _Reading:
    """The reading of one output by one metric, before code has run."""

    metric: Metric
    extracted: str | None
    score: float
    check: Check | None


def score(
    task: Task,
    problems: Sequence[Problem],
    outputs: Sequence[str],
    run_all: Callable[[list[Check]], Sequence[Outcome]],
) -> list[Verdict]:
    """Score an output for each problem; all code runs in one call of `run_all`.

    No output raises an error; only a metric that gives an invalid score does. An output in which a
    metric finds nothing scores 0, and nothing of it is run. The thoughts of a model are not part of
    its answer; texts that fill blanks are read whole.

    Args:
        task: the task of the problems.
        problems: one for each output.
        outputs: texts of a model, cut at stop texts.
        run_all: runs checks in a sandbox; returns one outcome each, in order.

    Raises:
        ValueError: a metric gives a score outside [0, 1], or `run_all` returns a wrong number of
            outcomes.
    """
    answers = outputs if task.infills else [without_thoughts(each) for each in outputs]
    table = [
        [_read(metric, problem, answer) for metric in task.metrics]
        for problem, answer in zip(problems, answers, strict=True)
    ]
    checks = [each.check for row in table for each in row if each.check is not None]
    outcomes = list(run_all(checks)) if checks else []
    if len(outcomes) != len(checks):
        raise ValueError(f"run_all must give {len(checks)} outcomes, got {len(outcomes)}")
    left = iter(outcomes)
    return [
        _verdict(row, [None if each.check is None else next(left) for each in row]) for row in table
    ]


def nothing(task: Task) -> Verdict:
    """The verdict on a prompt that was not decoded: failed, unlike an empty output may be."""
    names = [metric.name for metric in task.metrics]
    return Verdict(dict.fromkeys(names), dict.fromkeys(names, 0.0), 0.0, None, "")


def _read(metric: Metric, problem: Problem, output: str) -> _Reading:
    """What a metric finds, with its score or the check that must be run to know it."""
    extracted = metric.extract(problem, output)
    if extracted is None:
        return _Reading(metric, None, 0.0, None)
    if metric.check is not None:
        return _Reading(metric, extracted, 0.0, metric.check(problem, extracted))
    assert metric.is_correct is not None, f"{metric.name} has no rule"
    worth = float(metric.is_correct(problem, extracted))
    if not 0 <= worth <= 1:  # NaN is refused too; a file with it would count as damaged
        raise ValueError(
            f"is_correct of the metric {metric.name!r} must give a score in [0, 1], got {worth} "
            f"for problem {problem.id!r}"
        )
    return _Reading(metric, extracted, worth, None)


def _verdict(row: Sequence[_Reading], outcomes: Sequence[Outcome | None]) -> Verdict:
    """The verdict from a row of readings and the outcomes of their checks."""
    scores = {
        each.metric.name: each.score if outcome is None else float(outcome.passed)
        for each, outcome in zip(row, outcomes, strict=True)
    }
    details = [
        _detail(outcome)
        for each, outcome in zip(row, outcomes, strict=True)
        if each.metric.check is not None
    ]
    first = row[0]
    return Verdict(
        extracted={each.metric.name: each.extracted for each in row},
        scores=scores,
        score=next(iter(scores.values())),
        vote=first.metric.vote(first.extracted),
        detail=details[0] if details else "",
    )


def _detail(outcome: Outcome | None) -> str:
    """How running code ended, as text."""
    if outcome is None:
        return NOTHING
    return f"{outcome.kind}: {outcome.detail}" if outcome.detail else outcome.kind
