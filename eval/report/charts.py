"""SVG charts of a report: accuracy against cost, and accuracy by template."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from dlm.eval.report.axes import (
    Axis,
    cost_axis,
    horizontal_lines,
    label,
    rule,
    share_axis,
    vertical_lines,
)
from dlm.eval.report.html import Markup, element, picture, several
from dlm.eval.report.view import Entry, View, percent
from dlm.eval.summary import Row

SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "M-4.6 -4.6H4.6V4.6H-4.6Z",
    "M0 -6L5.6 4.4H-5.6Z",
    "M0 -6.4L6.4 0L0 6.4L-6.4 0Z",
    "M0 6L5.6 -4.4H-5.6Z",
    "M-2 -5.6H2V-2H5.6V2H2V5.6H-2V2H-5.6V-2H-2Z",
    "M0 -6L5.7 -1.9L3.5 4.9H-3.5L-5.7 -1.9Z",
)
"""Markers; with seven shapes and eight colours, 56 runs look different."""

WIDTH, HEIGHT = 460.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 446.0, 12.0, 280.0

Cost = Callable[[Row], float]


def forwards(row: Row) -> float:
    """Forward passes per row."""
    return row.counts.forwards_per_row


def seconds(row: Row) -> float:
    """Seconds of decoding per sample."""
    return row.counts.seconds_per_row


def marker(entry: Entry, x: float, y: float, title: str = "") -> Markup:
    """The marker of a run, with a tooltip."""
    hover = [element("title", title)] if title else []
    shape = SHAPES[entry.number % len(SHAPES)]
    place = f"translate({x:.2f} {y:.2f})"
    return element("path", *hover, d=shape, transform=place, class_=f"mark {entry.series}")


def legend(shown: View) -> Markup:
    """The markers with the names of their runs."""
    items = (
        element("li", element("svg", marker(each, 9, 9), viewBox="0 0 18 18"), each.label)
        for each in shown.entries
    )
    return element("ul", *items, class_="legend")


def told(entry: Entry, row: Row) -> str:
    """The figures of a point as text."""
    low, high = row.interval
    return (
        f"{entry.label}, {row.template}: {percent(row.score)} ({percent(low)} to {percent(high)}), "
        f"{forwards(row):.1f} forwards, {seconds(row):.3g} s a sample, n = {row.count:,}"
    )


def scatter(shown: View, cost: Cost, name: str) -> Markup:
    """Accuracy against a cost: runs as markers with 95% intervals, templates as dots."""
    rows = [row for entry in shown.entries for row in entry.figures]
    x = cost_axis([cost(row) for row in rows], LEFT, RIGHT)
    y = accuracy_axis(shown, rows)
    grid = [horizontal_lines(y, LEFT, RIGHT), vertical_lines(x, TOP, BOTTOM)]
    axes = rule(LEFT, BOTTOM, RIGHT, BOTTOM, "axis") + rule(LEFT, TOP, LEFT, BOTTOM, "axis")
    dots = [
        dot(entry, row, x.at(cost(row)), y.at(row.score))
        for entry in shown.entries
        for row in entry.rows
        if row is not entry.overall
    ]
    marks = [
        bar(entry, x.at(cost(entry.overall)), y, entry.overall)
        + marker(
            entry,
            x.at(cost(entry.overall)),
            y.at(entry.overall.score),
            told(entry, entry.overall),
        )
        for entry in shown.entries
    ]
    scale = f"{name}, logarithmic" if x.log else name
    title = label((LEFT + RIGHT) / 2, HEIGHT - 10, scale, class_="name")
    alt = f"Accuracy against {name}; the figures are in the table above."
    return picture(WIDTH, HEIGHT, alt, *grid, axes, *dots, *marks, title)


def accuracy_axis(shown: View, rows: Sequence[Row]) -> Axis:
    """A vertical axis that covers every dot and the whole interval of every marker."""
    ends = [end for entry in shown.entries for end in entry.overall.interval]
    values = [*ends, *(row.score for row in rows)]
    return share_axis(min(values), max(values), BOTTOM, TOP)


def bar(entry: Entry, x: float, y: Axis, row: Row) -> Markup:
    """The interval of a score as a vertical bar."""
    low, high = map(y.at, row.interval)
    path = f"M{x:.2f} {low:.2f}V{high:.2f}M{x - 4:.2f} {low:.2f}h8M{x - 4:.2f} {high:.2f}h8"
    return element("path", d=path, class_=f"bar {entry.series}")


def dot(entry: Entry, row: Row, x: float, y: float) -> Markup:
    """A template of a run as a small dot."""
    title = element("title", told(entry, row))
    return element("circle", title, cx=x, cy=y, r=3, class_=f"dot {entry.series}")


STEP, HEAD = 15.0, 26.0  # pixels of a run in a template's row, and above the runs


def templates(shown: View) -> Markup:
    """Accuracy by template: a line for each run; where lines cross, ranks change."""
    row_height = HEAD + STEP * len(shown.entries) + 6
    bottom = TOP + row_height * len(shown.templates)
    ends = [end for entry in shown.entries for row in entry.rows for end in row.interval]
    x = share_axis(min(ends), max(ends), 16.0, WIDTH - 22)
    parts = [vertical_lines(x, TOP, bottom, shares=True)]
    for number, name in enumerate(shown.templates):
        top = TOP + row_height * number
        parts.append(rule(16, top, WIDTH - 22, top, "axis"))
        parts.append(label(18, top + 17, name, "start", class_="name halo"))
    for entry in shown.entries:
        points = [
            (x.at(row.score), TOP + row_height * place + HEAD + STEP * (entry.number + 0.3), row)
            for place, name in enumerate(shown.templates)
            if (row := entry.row(name)) is not None
        ]
        parts += [
            element("path", d=f"M{a:.2f} {b:.2f}L{c:.2f} {d:.2f}", class_=f"link {entry.series}")
            for (a, b, _), (c, d, _) in pairwise(points)
        ]
        parts += [flat_bar(entry, x, b, row) for _, b, row in points]
        parts += [marker(entry, a, b, told(entry, row)) for a, b, row in points]
    title = label(WIDTH / 2, bottom + 40, "accuracy", class_="name")
    alt = "Accuracy by template and decoder; the figures are in the table above."
    return picture(WIDTH, bottom + 50, alt, several(parts), title)


def flat_bar(entry: Entry, x: Axis, y: float, row: Row) -> Markup:
    """The interval of a score as a horizontal bar."""
    low, high = map(x.at, row.interval)
    return element("path", d=f"M{low:.2f} {y:.2f}H{high:.2f}", class_=f"bar {entry.series}")
