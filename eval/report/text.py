"""The report as Markdown."""

from collections.abc import Iterable, Sequence

from dlm.eval.comparison import METHODS
from dlm.eval.comparison_tables import p_value, points, points_interval
from dlm.eval.counting import DEFINITIONS
from dlm.eval.folder import Run
from dlm.eval.inference import Estimate
from dlm.eval.repeats import HEAD as MEASURES
from dlm.eval.report.view import Entry, View, percent, row_cells, view
from dlm.eval.summary import HEAD, Row, facts, figure_cells


def markdown(runs: Sequence[Run], *, pass_at: Sequence[int] = ()) -> str:
    """A table of runs: figures, other metrics and the difference to the first run.

    A second table has pass@k and majority votes if problems have several samples.

    Args:
        runs: the baseline and the other runs.
        pass_at: k of each pass@k; powers of two if empty.

    Raises:
        ValueError: there is no run, a run has no sample, the runs do not belong together, or no run
            has enough samples for a k.
    """
    shown = view(runs, pass_at)
    head = summary_head(shown)
    rows = [summary_cells(shown, entry, row) for entry in shown.entries for row in entry.figures]
    title = f"**{cell(shown.task)}**: {cell(', '.join(shown.setting('model')))}"
    told = [*shown.definitions, *DEFINITIONS, *(METHODS if len(runs) > 1 else ())]
    parts = [
        title,
        table(head, rows),
        *([table(*measured(shown))] if shown.repeated else []),
        "\n".join(f"- *{cell(term)}*: {cell(meaning)}" for term, meaning in told),
        "\n".join(f"- {cell(entry.label)}: {cell(facts(entry.run))}" for entry in shown.entries),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose first two columns are names."""
    align = ["---", "---", *["--:"] * (len(head) - 2)]
    return "\n".join([line(map(cell, head)), line(align), *(line(map(cell, row)) for row in rows)])


def measured(shown: View) -> tuple[list[str], list[list[str]]]:
    """Head and rows of pass@k and majority votes, with differences if there are several runs."""
    head = [*MEASURES]
    if len(shown.entries) > 1:
        head += ["points", "95% of points"]
    return head, [line for entry in shown.entries for line in measured_cells(shown, entry)]


def measured_cells(shown: View, entry: Entry) -> list[list[str]]:
    """The rows of one run; pass@1 alone if it has one sample per problem."""
    found = []
    for row in entry.figures:
        differences = differences_of(entry, row.template)
        for figure, (_, *cells) in zip(row.figures, figure_cells(row), strict=True):
            told = [entry.label, *cells]
            if len(shown.entries) > 1 and not entry.number:
                told += ["baseline", ""]
            elif len(shown.entries) > 1:
                difference = differences.get(figure.measure.name, Estimate(None, None))
                told += [points(difference), points_interval(difference)]
            found.append(told)
    return found


def differences_of(entry: Entry, template: str) -> dict[str, Estimate]:
    """The differences to the measures of the first run, by name."""
    found = entry.comparisons.get(template)
    if found is None:
        return {}
    more = {each.measure.name: each.difference for each in found.contrasts}
    return {"pass@1": found.difference} | more


def line(cells: Iterable[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def cell(content: str) -> str:
    """Escape text for a Markdown table."""
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
