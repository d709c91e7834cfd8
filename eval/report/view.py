"""The content of a report: runs with their names, figures and comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlm.eval.comparison import ALL, Comparison, compare_pair, labels
from dlm.eval.folder import Run
from dlm.eval.repeats import check_pass_at, definitions
from dlm.eval.summary import Row, cells, row_of, summarise


@dataclass(frozen=True, slots=True)
class Entry:
    """A run of the report."""

    number: int  # its index, which determines colour and marker
    label: str
    run: Run
    rows: list[Row]  # one per template
    together: list[str]  # templates of `overall`
    overall: Row  # over the templates that all runs have; if there is one, its row
    comparisons: dict[str, Comparison]  # with the first run, by template

    @property
    def series(self) -> str:
        """The style sheet class of its colour."""
        return f"s{self.number % 8}"

    @property
    def figures(self) -> list[Row]:
        """The rows of the summary: single templates, and several together."""
        return self.rows if self.overall in self.rows else [*self.rows, self.overall]

    @property
    def wanted(self) -> int:
        """The number of samples of the complete run."""
        return self.run.wanted

    def row(self, template: str) -> Row | None:
        """The figures of a template."""
        return next((row for row in self.rows if row.template == template), None)


@dataclass(frozen=True, slots=True)
class View:
    """All runs of a report."""

    entries: list[Entry]
    templates: list[str]  # templates that have samples, in the order of the settings

    @property
    def task(self) -> str:
        """The task of the runs."""
        return str(self.entries[0].run.settings["task"])

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics; the first one is the score."""
        return list(self.entries[0].overall.scores)

    @property
    def repeated(self) -> bool:
        """Whether problems of any run have several samples."""
        return any(entry.run.repeats > 1 for entry in self.entries)

    @property
    def definitions(self) -> list[tuple[str, str]]:
        """The definitions for several samples; empty if there are none."""
        rows = [row for entry in self.entries for row in entry.figures]
        return definitions(x.measure for row in rows for x in row.figures) if self.repeated else []

    @property
    def several(self) -> bool:
        """Whether any run has a row for several templates together."""
        return any(len(entry.together) > 1 for entry in self.entries)

    def setting(self, name: str) -> list[str]:
        """The values of a setting over all runs, each distinct value once."""
        return unique(entry.run.settings.get(name) for entry in self.entries)

    def launch(self, name: str) -> list[str]:
        """The values of a fact over all starts, each distinct value once."""
        facts = [start.get(name) for entry in self.entries for start in entry.run.launches]
        return unique(facts)


def unique(values: Any) -> list[str]:
    """Distinct values as text, without None."""
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def view(runs: Sequence[Run], pass_at: Sequence[int] = ()) -> View:
    """Collect names, figures and comparisons of runs.

    Raises:
        ValueError: there is no run, a run has no sample, the runs do not belong together, or no run
            has enough samples for a k.
    """
    if not runs:
        raise ValueError("report needs at least one run, got none")
    check_pass_at(pass_at, max(run.repeats for run in runs))
    names = labels(runs)
    summaries = [summarise(run, pass_at=pass_at) for run in runs]
    listed = [[row.template for row in rows] for rows in summaries]
    common = [name for name in listed[0] if all(name in each for each in listed)]
    entries = []
    for number, (run, name, rows) in enumerate(zip(runs, names, summaries, strict=True)):
        together = common or listed[number]
        pair = (names[0], name)
        found = compare_pair(runs[0], run, pair, pass_at=pass_at) if number else []
        compared = {each.template: each for each in found}
        whole = overall(rows, together, pass_at)
        entries.append(Entry(number, name, run, rows, together, whole, compared))
    return View(entries, list(dict.fromkeys(name for each in listed for name in each)))


def overall(rows: Sequence[Row], templates: Sequence[str], pass_at: Sequence[int] = ()) -> Row:
    """The figures over some templates together."""
    if len(templates) == 1:
        return next(row for row in rows if row.template == templates[0])
    samples = [each for each in rows[0].run.samples if each.template in templates]
    return row_of(rows[0].run, ALL, samples, pass_at)


def row_cells(entry: Entry, row: Row) -> list[str]:
    """The cells of the summary, with the run's label and the missing part of an unfinished run."""
    found = cells(row)
    each = len(entry.together) if row.template == ALL else 1
    wanted = entry.run.problems * entry.run.repeats * each
    size = f"{row.count:,}" if row.count == wanted else f"{row.count:,} of {wanted:,}"
    return [entry.label, row.template, size, *found[3:]]


def percent(share: float) -> str:
    """A share in percent."""
    return f"{share:.1%}"
