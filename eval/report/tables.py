"""Tables of a report: the summary, the definitions, and the settings of the runs."""

from collections.abc import Sequence
from typing import Any

from dlm.eval.comparison import ALL, METHODS
from dlm.eval.comparison_tables import table
from dlm.eval.counting import DEFINITIONS
from dlm.eval.report.charts import marker
from dlm.eval.report.html import (
    Markup,
    breakable,
    definitions,
    element,
    scrolling,
    several,
)
from dlm.eval.report.text import measured, measured_cells, summary_cells, summary_head
from dlm.eval.report.view import Entry, View, unique
from dlm.eval.summary import HEAD

FACTS = ("model", "device", "dtype", "dlm")
STARTS = ("torch", "python", "commit", "started")
"""Facts of settings and of starts that are shown first; the full table has all of them."""


def summary(shown: View) -> Markup:
    """A row for each run and template."""
    groups = [
        (entry, [summary_cells(shown, entry, row)[: width(shown)] for row in entry.figures])
        for entry in shown.entries
    ]
    return grouped("Summary", summary_head(shown)[: width(shown)], groups)


def width(shown: View) -> int:
    """Columns of the summary without the comparison, which has its own table."""
    return len(HEAD) + len(shown.metrics) - 1


def repeated(shown: View) -> Markup:
    """pass@k and majority votes; empty if no problem has several samples."""
    if not shown.repeated:
        return several([])
    groups = [(entry, measured_cells(shown, entry)) for entry in shown.entries]
    head, _ = measured(shown)
    return several([element("h3", "Several samples"), grouped("Several samples", head, groups)])


def compared(shown: View) -> Markup:
    """The other runs compared with the first; empty if there are none."""
    found = [(entry, [*entry.comparisons.values()]) for entry in shown.entries]
    tables = [(entry, *table(rows)) for entry, rows in found if rows]
    if not tables:
        return several([])
    head = ["decoder", *tables[0][1][1:]]
    scores = head.index("score")  # these are in the summary
    groups = [(entry, [without(row, scores) for row in rows]) for entry, _, rows in tables]
    return several(
        [
            element("h3", f"Against {shown.entries[0].label}"),
            grouped("Comparisons", without(head, scores), groups),
        ]
    )


def without(row: list[str], place: int) -> list[str]:
    """A row without one cell."""
    return row[:place] + row[place + 1 :]


def grouped(
    label: str, head: Sequence[str], groups: Sequence[tuple[Entry, list[list[str]]]]
) -> Markup:
    """A table with the rows of each run next to the run's name."""
    columns = (element("th", name.replace("/ ", "/\xa0"), scope="col") for name in head)
    bodies = (group(entry, rows) for entry, rows in groups)
    body = [element("thead", element("tr", *columns)), *bodies]
    return scrolling(label, element("table", *body, class_="figures-table"))


def group(entry: Entry, rows: list[list[str]]) -> Markup:
    """The rows of a run."""
    sign = element("svg", marker(entry, 9, 9), viewBox="0 0 18 18", aria_hidden="true")
    name = element("span", sign, element("span", breakable(entry.label)), class_="run")
    first = element("th", name, scope="rowgroup", rowspan=len(rows))
    lines = []
    for place, (_, template, *rest) in enumerate(rows):
        data = [element("td", breakable(template), class_="template")]
        data += [element("td", cell) for cell in rest]
        head = [] if place else [first]
        lines.append(element("tr", *head, *data, class_="mean" if template == ALL else None))
    return element("tbody", *lines)


def notes(shown: View) -> Markup:
    """Notes that a reader of the summary needs."""
    how = "Wilson interval" if not shown.repeated else "see what is counted"
    told = [f"score: {shown.metrics[0]}; 95%: {how}."]
    if shown.several:
        every = " that every run has" if len(shown.entries) > 1 else ""
        told.append(
            f"{ALL}: the templates{every} together, the interval as if each problem were put "
            "once, since templates of one problem are not independent."
        )
    told += [
        f"{entry.label}: {entry.overall.too_long:,} prompts too long for the model count as failed."
        for entry in shown.entries
        if entry.overall.too_long
    ]
    told += [
        f"{entry.label} has no sample in common with {shown.entries[0].label}."
        for entry in shown.entries[1:]
        if not entry.comparisons
    ]
    return element("p", " ".join(told), class_="note")


def counted(shown: View) -> Markup:
    """The definitions of the columns."""
    told = [
        *shown.definitions,
        *DEFINITIONS,
        *(METHODS if len(shown.entries) > 1 else ()),
    ]
    return definitions(told, "terms")


def facts(shown: View) -> Markup:
    """The most important facts."""
    seeds = unique(entry.run.settings["generation"].get("seed") for entry in shown.entries)
    found = [
        *((name, shown.setting(name)) for name in FACTS),
        ("seed", seeds),
        *((name, shown.launch(name)) for name in STARTS),
    ]
    return definitions([(name, ", ".join(values)) for name, values in found if values], "facts")


def settings(shown: View) -> Markup:
    """All settings that determined the results: a column per run, or one if they agree."""
    listed = [flat(entry) for entry in shown.entries]
    names = list(dict.fromkeys(name for facts in listed for name in facts))
    head = [element("th", "setting", scope="col")]
    head += [element("th", breakable(entry.label), scope="col") for entry in shown.entries]
    rows = (setting_row(name, [facts.get(name, "-") for facts in listed]) for name in names)
    parts = [element("thead", element("tr", *head)), element("tbody", *rows)]
    box = scrolling("Settings", element("table", *parts, class_="settings"))
    return element("details", element("summary", f"All {len(names)} settings"), box)


def setting_row(name: str, values: Sequence[str]) -> Markup:
    """A setting of all runs."""
    same = len(set(values)) == 1
    cells = [element("td", values[0], colspan=len(values))] if same else map_cells(values)
    head = element("th", name, scope="row")
    return element("tr", head, *cells, class_=None if same else "differs")


def map_cells(values: Sequence[str]) -> list[Markup]:
    """A cell for each value."""
    return [element("td", value) for value in values]


def flat(entry: Entry) -> dict[str, str]:
    """The settings and start facts of a run, as text."""
    found = {"folder": str(entry.run.folder), "settings": entry.run.hash}
    for name, value in entry.run.settings.items():
        if isinstance(value, dict) and name in ("generation", "data", "execution"):
            found |= {f"{name}: {key}": told(each) for key, each in value.items()}
        else:
            found[name] = told(value)
    for name in dict.fromkeys(key for start in entry.run.launches for key in start):
        values = unique(start.get(name) for start in entry.run.launches)
        found[f"start: {name}"] = ", ".join(values) or "-"
    return found


def told(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items()) or "-"
    return "-" if value is None else str(value)


def unfinished(shown: View) -> Markup:
    """A warning for each incomplete run."""
    some = [entry for entry in shown.entries if not entry.run.complete]
    return several(
        element(
            "p",
            element("strong", "Not complete: "),
            f"{entry.label} has {len(entry.run.samples):,} of {entry.wanted:,} samples. "
            "The longest prompts come first, so its figures will move.",
            class_="warning",
        )
        for entry in some
    )
