"""Comparisons of runs as text tables and as JSON."""

from collections.abc import Sequence
from typing import Any

from dlm.eval.comparison import Comparison
from dlm.eval.inference import Estimate
from dlm.eval.repeats import MAJORITY, PASS


def table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of comparisons."""
    head = [
        f"against {comparisons[0].baseline}",
        "template",
        "n",
        "left out",
        "score",
        "points",
        "95%",
        "only one right",
        "p",
        "forwards, ratio",
        "response / forward, ratio",
        "seconds, ratio",
    ]
    return head, [cells(each) for each in comparisons]


def cells(each: Comparison) -> list[str]:
    """A comparison as text, in the columns of `table`."""
    return [
        each.other,
        each.template,
        f"{each.pairs:,}",
        " + ".join(f"{count:,}" for count in each.left_out),
        " -> ".join(f"{score:.1%}" for score in each.scores),
        points(each.difference),
        points_interval(each.difference),
        " : ".join(f"{count:,}" for count in each.discordant),
        p_value(each.p),
        ratio(each.forwards),
        ratio(each.response_tokens_per_forward),
        ratio(each.seconds),
    ]


def contrast_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of measures; without rows if there are no measures."""
    head = [
        *(f"against {comparisons[0].baseline}", "template", "measure", "n"),
        *("value", "points", "95%"),
    ]
    rows = [
        [
            each.other,
            each.template,
            contrast.measure.name,
            f"{contrast.pairs:,}",
            " -> ".join(f"{score:.1%}" for score in contrast.scores),
            points(contrast.difference),
            points_interval(contrast.difference),
        ]
        for each in comparisons
        for contrast in each.contrasts
    ]
    return head, rows


def points(difference: Estimate) -> str:
    """A difference of scores in percentage points."""
    return "-" if difference.value is None else f"{100 * difference.value:+.1f}"


def points_interval(difference: Estimate) -> str:
    """The interval of a difference."""
    if difference.interval is None:
        return "-"
    return " to ".join(f"{100 * end:+.1f}" for end in difference.interval)


def p_value(p: float | None) -> str:
    """A p-value with three decimals."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def ratio(estimate: Estimate) -> str:
    """A ratio with its interval."""
    if estimate.value is None:
        return "-"
    if estimate.interval is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({' to '.join(f'{end:.2f}' for end in estimate.interval)})"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON; scores and differences are fractions, not percent."""
    estimates = {
        name: {
            "value": getattr(comparison, name).value,
            "interval": getattr(comparison, name).interval,
        }
        for name in ("difference", "forwards", "response_tokens_per_forward", "seconds")
    }
    return {
        "baseline": comparison.baseline,
        "other": comparison.other,
        "template": comparison.template,
        "pairs": comparison.pairs,
        "problems": comparison.problems,
        "left_out": dict(zip(("baseline", "other"), comparison.left_out, strict=True)),
        "score": dict(zip(("baseline", "other"), comparison.scores, strict=True)),
        "only_right": dict(zip(("baseline", "other"), comparison.discordant, strict=True)),
        "p": comparison.p,
        **estimates,
        **{f"{kind}_at": contrasts_as_json(comparison, kind) for kind in (PASS, MAJORITY)},
    }


def contrasts_as_json(comparison: Comparison, kind: str) -> dict[str, Any]:
    """The measures of one kind as JSON, by their k."""
    return {
        str(each.measure.k): {
            "pairs": each.pairs,
            "score": dict(zip(("baseline", "other"), each.scores, strict=True)),
            "difference": {
                "value": each.difference.value,
                "interval": each.difference.interval,
            },
        }
        for each in comparison.contrasts
        if each.measure.kind == kind
    }
