"""What a report is about: runs with their names, figures and comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dlm.eval.comparison import ALL, Comparison, compare_pair, labels
from dlm.eval.folder import Run
from dlm.eval.inference import wilson
from dlm.eval.summary import Row, cells, row_of, summarise


@dataclass(frozen=True, slots=True)
class Entry:
    """A run of the report."""

    number: int  # its place, which decides colour and marker
    label: str
    run: Run
    rows: list[Row]  # a template each
    together: list[str]  # templates of `overall`
    overall: Row  # over the templates that all runs have, the only one's if there is one
    comparisons: dict[str, Comparison]  # with the first run, by template

    @property
    def series(self) -> str:
        """Class of its colour in the style sheet."""
        return f"s{self.number % 8}"

    @property
    def figures(self) -> list[Row]:
        """The rows of the summary: templates, and several together."""
        return self.rows if self.overall in self.rows else [*self.rows, self.overall]

    @property
    def wanted(self) -> int:
        """Samples of the run once it is complete."""
        return self.run.problems * len(self.run.templates)

    def row(self, template: str) -> Row | None:
        """The figures of a template."""
        return next((row for row in self.rows if row.template == template), None)


@dataclass(frozen=True, slots=True)
class View:
    """All of them."""

    entries: list[Entry]
    templates: list[str]  # that have samples, in the order of the settings

    @property
    def task(self) -> str:
        """What the runs solve."""
        return str(self.entries[0].run.settings["task"])

    @property
    def metrics(self) -> list[str]:
        """Names of the scores; the first one is the score."""
        return list(self.entries[0].overall.scores)

    @property
    def several(self) -> bool:
        """Whether any run has a row of templates together."""
        return any(len(entry.together) > 1 for entry in self.entries)

    def setting(self, name: str) -> list[str]:
        """What the runs were made with, each value once."""
        return unique(entry.run.settings.get(name) for entry in self.entries)

    def launch(self, name: str) -> list[str]:
        """The same of a fact of their starts."""
        facts = [start.get(name) for entry in self.entries for start in entry.run.launches]
        return unique(facts)


def unique(values: Any) -> list[str]:
    """Values as text, each once, without those that nobody knows."""
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def view(runs: Sequence[Run]) -> View:
    """Names, figures and comparisons of runs.

    Raises:
        ValueError: no run, one without a sample, or runs that do not belong together.
    """
    if not runs:
        raise ValueError("report needs at least one run, got none")
    names = labels(runs)
    summaries = [summarise(run) for run in runs]
    listed = [[row.template for row in rows] for rows in summaries]
    common = [name for name in listed[0] if all(name in each for each in listed)]
    entries = []
    for number, (run, name, rows) in enumerate(zip(runs, names, summaries, strict=True)):
        together = common or listed[number]
        found = compare_pair(runs[0], run, (names[0], name)) if number else []
        compared = {each.template: each for each in found}
        entries.append(Entry(number, name, run, rows, together, overall(rows, together), compared))
    return View(entries, list(dict.fromkeys(name for each in listed for name in each)))


def overall(rows: Sequence[Row], templates: Sequence[str]) -> Row:
    """The figures over some templates together.

    Samples of one problem are not independent, so the interval is Wilson's for as many samples
    as there are problems: right if templates change nothing, else too wide.
    """
    if len(templates) == 1:
        return next(row for row in rows if row.template == templates[0])
    samples = [each for each in rows[0].run.samples if each.template in templates]
    row = row_of(rows[0].run, ALL, samples)
    return replace(row, interval=wilson(row.score, len({each.index for each in samples})))


def row_cells(entry: Entry, row: Row) -> list[str]:
    """The columns of the summary, with the name of the entry, and the size of what is not done."""
    found = cells(row)
    wanted = entry.run.problems * (len(entry.together) if row.template == ALL else 1)
    size = f"{row.count:,}" if row.count == wanted else f"{row.count:,} of {wanted:,}"
    return [entry.label, row.template, size, *found[3:]]


def percent(share: float) -> str:
    """A share in percent."""
    return f"{share:.1%}"
