"""The report as Markdown."""

from collections.abc import Iterable, Sequence

from dlm.eval.comparison import METHODS
from dlm.eval.comparison_tables import p_value, points, points_interval
from dlm.eval.counting import DEFINITIONS
from dlm.eval.folder import Run
from dlm.eval.report.view import Entry, View, percent, row_cells, view
from dlm.eval.summary import HEAD, Row, facts


def markdown(runs: Sequence[Run]) -> str:
    """A table of runs: figures, other metrics and the difference to the first run.

    Raises:
        ValueError: no run, one without a sample, or runs that do not belong together.
    """
    shown = view(runs)
    head = summary_head(shown)
    rows = [summary_cells(shown, entry, row) for entry in shown.entries for row in entry.figures]
    align = ["---", "---", *["--:"] * (len(head) - 2)]
    title = f"**{cell(shown.task)}**: {cell(', '.join(shown.setting('model')))}"
    told = [*DEFINITIONS, *(METHODS if len(runs) > 1 else ())]
    parts = [
        title,
        "\n".join([line(map(cell, head)), line(align), *(line(map(cell, row)) for row in rows)]),
        "\n".join(f"- *{cell(term)}*: {cell(meaning)}" for term, meaning in told),
        "\n".join(f"- {cell(entry.label)}: {cell(facts(entry.run))}" for entry in shown.entries),
    ]
    return "\n\n".join(parts) + "\n"


def line(cells: Iterable[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def cell(content: str) -> str:
    """Text that means itself in a Markdown table."""
    flat = " ".join(content.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{sign}" if sign in "\\`*_[]|" else sign for sign in flat)


def summary_head(shown: View) -> list[str]:
    """The columns of the summary."""
    compared = ["points", "95% of points", "p"] if len(shown.entries) > 1 else []
    return [*HEAD, *shown.metrics[1:], *compared]


def summary_cells(shown: View, entry: Entry, row: Row) -> list[str]:
    """A row of the summary."""
    others = [percent(row.scores[name]) for name in shown.metrics[1:]]
    return [*row_cells(entry, row), *others, *difference_cells(shown, entry, row.template)]


def difference_cells(shown: View, entry: Entry, template: str) -> list[str]:
    """The difference to the first run, its interval and p, if there are several runs."""
    if len(shown.entries) == 1:
        return []
    if entry.number == 0:
        return ["baseline", "", ""]
    found = entry.comparisons.get(template)
    if found is None:
        return ["-", "-", "-"]
    return [points(found.difference), points_interval(found.difference), p_value(found.p)]
