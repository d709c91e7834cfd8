"""The figures of a run: accuracy with its uncertainty, and cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from dlm.eval.counting import Counts
from dlm.eval.folder import Run
from dlm.eval.repeats import Figure, figures, mean, measures_of
from dlm.eval.sample import Sample, by_prompt


@dataclass(frozen=True, slots=True)
class Row:
    """One template of a run, or the mean over its templates."""

    run: Run
    template: str
    count: int  # samples
    problems: int  # number of different problems
    too_long: int  # prompts that were too long to decode
    scores: dict[str, float]  # mean over prompts by metric; the first one is the score
    interval: tuple[float, float]  # 95% interval of the score
    counts: Counts  # over the decoded samples
    figures: list[Figure]  # pass@1 first

    @property
    def score(self) -> float:
        """Mean of the first metric, 0 to 1."""
        return next(iter(self.scores.values()))


def row_of(run: Run, template: str, samples: Sequence[Sample], pass_at: Sequence[int] = ()) -> Row:
    """Compute the figures of some samples."""
    groups = list(by_prompt(samples).values())
    found = figures(groups, measures_of(run, pass_at))
    assert found[0].interval is not None  # every group has a sample
    return Row(
        run=run,
        template=template,
        count=len(samples),
        problems=len({each.index for each in samples}),
        too_long=sum(not any(each.forwards for each in group) for group in groups),
        scores={
            name: mean([mean([each.scores[name] for each in group]) for group in groups])
            for name in samples[0].scores
        },
        interval=found[0].interval,
        counts=Counts.of(samples),
        figures=found,
    )


def summarise(run: Run, *, pass_at: Sequence[int] = ()) -> list[Row]:
    """A row for each template that has samples, in the order of the settings.

    Args:
        run: the run with its samples.
        pass_at: k of each pass@k besides pass@1; powers of two if empty. A k above the number of
            samples is left out.

    Raises:
        ValueError: the run has no sample.
    """
    rows = []
    for template in run.templates:
        samples = [each for each in run.samples if each.template == template]
        if samples:
            rows.append(row_of(run, template, samples, pass_at))
    if not rows:
        raise ValueError(f"{str(run.folder)!r} must hold at least one sample, got none")
    return rows


def spread(rows: Sequence[Row]) -> tuple[float, float]:
    """Lowest and highest score over the templates of one run."""
    return min(row.score for row in rows), max(row.score for row in rows)


HEAD = (
    "decoder",
    "template",
    "n",
    "score",
    "95%",
    "forwards",
    "query tokens",
    "response / forward",
    "tokens / forward",
    "response / s",
    "tokens / s",
)
"""Columns of every table; `dlm.eval.counting.DEFINITIONS` defines them."""


def cells(row: Row) -> list[str]:
    """A row as text, in the columns of `HEAD`."""
    counts = row.counts
    low, high = row.interval
    measured = [
        f"{counts.forwards_per_row:.1f}",
        f"{counts.query_tokens_per_row:,.0f}",
        f"{counts.response_tokens_per_forward:.2f}",
        f"{counts.tokens_per_forward:.2f}",
        f"{counts.response_tokens_per_second:,.1f}",
        f"{counts.tokens_per_second:,.1f}",
    ]
    return [
        row.run.name,
        row.template,
        f"{row.count:,}",
        f"{row.score:.1%}",
        f"{low:.1%} - {high:.1%}",
        *(measured if counts.samples else ["-"] * len(measured)),
    ]


def figure_cells(row: Row) -> list[list[str]]:
    """The measures of a row as text, in the columns of `dlm.eval.repeats.HEAD`."""
    return [
        [
            row.run.name,
            row.template,
            each.measure.name,
            f"{each.problems:,}",
            "-" if each.value is None else f"{each.value:.1%}",
            "-" if each.interval is None else " - ".join(f"{end:.1%}" for end in each.interval),
        ]
        for each in row.figures
    ]


def launched(run: Run, name: str) -> list[object]:
    """A fact of the starts of a run, each distinct value once."""
    return list(dict.fromkeys(start.get(name) for start in run.launches))


def executed(run: Run) -> list[str]:
    """What executed generated code, if the run has any."""
    found = run.settings.get("execution")
    return [] if found is None else [f"code run by {found['python']} in {found['sandbox']}"]


def execution_note(runs: Sequence[Run]) -> str | None:
    """A warning if the runs executed generated code differently; None otherwise."""
    ways = [run.settings.get("execution") for run in runs]
    if all(way == ways[0] for way in ways):
        return None
    told = "; ".join(
        f"{run.folder}: {', '.join(f'{key} {value}' for key, value in way.items())}"
        if way is not None
        else f"{run.folder}: not recorded"
        for run, way in zip(runs, ways, strict=True)
    )
    return f"code was not run in one way, which can change scores: {told}"


def partial_notes(runs: Sequence[Run]) -> list[str]:
    """A warning for each incomplete run."""
    return [
        f"{run.folder} has {len(run.samples):,} of {run.wanted:,} samples: its figures will move"
        for run in runs
        if not run.complete
    ]


def facts(run: Run) -> str:
    """The settings of a run and of all its starts, on one line."""
    settings = run.settings
    told = {
        label: ", ".join(str(value) for value in launched(run, name) if value is not None)
        for label, name in (
            ("batch size", "batch_size"),
            ("processes", "processes"),
            ("torch", "torch"),
            ("Python", "python"),
            ("commit", "commit"),
        )
    }
    parts = [
        f"{settings['task']} version {settings['task_version']}",
        settings["model"],
        settings["device"],
        settings["dtype"],
        f"dlm {settings['dlm']}",
        *(f"{label} {value}" for label, value in told.items() if value),
        *executed(run),
        f"seed {settings['generation']['seed']}",
    ]
    return "; ".join(parts)
