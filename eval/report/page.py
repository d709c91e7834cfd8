"""The report page: one file that needs no network, and in which only its own script can run."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from dlm.eval.folder import Run, replace_file
from dlm.eval.report.charts import forwards, legend, scatter, seconds, templates
from dlm.eval.report.heat import SHOWN, colour_bar, heat_map
from dlm.eval.report.html import Markup, element, several
from dlm.eval.report.ranking import ranking
from dlm.eval.report.samples import EACH, LIMIT, browser_data, embedded
from dlm.eval.report.tables import (
    compared,
    counted,
    facts,
    notes,
    repeated,
    settings,
    summary,
    unfinished,
)
from dlm.eval.report.view import View, view
from dlm.options import integer

SECTIONS = {
    "summary": "Summary",
    "counted": "What is counted",
    "cost": "Accuracy and cost",
    "templates": "Templates",
    "order": "Commit order",
    "samples": "Samples",
}


def write_report(
    runs: Sequence[Run], out: Path, *, limit: int = LIMIT, pass_at: Sequence[int] = ()
) -> None:
    """Write a page about runs of one task and the same data.

    Args:
        runs: the baseline and the other runs.
        out: the file to write; its folder is created.
        limit: most prompts whose outputs of all runs are included; prompts on which the runs differ
            come first.
        pass_at: k of each pass@k; powers of two if empty.

    Raises:
        ValueError: there is no run, a run has no sample, the runs do not belong together, or no run
            has enough samples for a k.
    """
    integer("limit", limit, least=0)
    text = page(view(runs, pass_at), limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    # ASCII only, so that neither the system's encoding nor a lone surrogate can cause an error.
    replace_file(out, text.encode("ascii", "xmlcharrefreplace").decode())


def page(shown: View, limit: int = LIMIT) -> Markup:
    """The whole document."""
    style, script = asset("report.css"), asset("report.js")
    parts = {
        "summary": [summary(shown), repeated(shown), compared(shown), notes(shown)],
        "counted": [counted(shown), facts(shown), settings(shown)],
        "cost": [cost(shown)],
        "templates": [spread(shown)],
        "order": [order(shown)],
        "samples": [browser(shown, limit)],
    }
    name = f"{shown.task}: {', '.join(shown.setting('model'))}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{name} - dlm eval"),
        element("style", style),
    )
    sections = (
        element("section", element("h2", SECTIONS[key]), *content, id=key)
        for key, content in parts.items()
    )
    main = element("main", *sections)
    scripts = element("script", script)
    body = element("body", header(shown), main, scripts)
    return Markup(f"<!doctype html>\n{element('html', head, body, lang='en')}\n")


def asset(name: str) -> Markup:
    """A style sheet or a script of the report."""
    return Markup((files("dlm.eval.report") / "assets" / name).read_text(encoding="ascii"))


def policy(style: str, script: str) -> str:
    """The content security policy: apply this style, run this script, and nothing else."""
    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def digest(content: str) -> str:
    """A source for the policy: the SHA-256 of an element's content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def header(shown: View) -> Markup:
    """Title, size, and links to all sections."""
    runs, many = len(shown.entries), len(shown.templates)
    samples = sum(len(entry.run.samples) for entry in shown.entries)
    size = (
        f"{runs:,} {'run' if runs == 1 else 'runs'}, "
        f"{many:,} {'template' if many == 1 else 'templates'}, {samples:,} samples"
    )
    links = (element("a", name, href=f"#{key}") for key, name in SECTIONS.items())
    return element(
        "header",
        element("p", "dlm evaluation", class_="kind"),
        element("h1", shown.task),
        element("p", ", ".join(shown.setting("model")), class_="model"),
        element("p", size, class_="size"),
        unfinished(shown),
        element("nav", *links, aria_label="Sections"),
    )


def figure(content: Markup, caption: str) -> Markup:
    """A chart with its caption above it."""
    return element("figure", element("figcaption", caption), content)


def cost(shown: View) -> Markup:
    """Accuracy against forward passes and against seconds."""
    charts = [
        figure(scatter(shown, forwards, "forwards a sample"), "Accuracy against forwards"),
        figure(scatter(shown, seconds, "seconds a sample"), "Accuracy against seconds"),
    ]
    told = "Bars: 95% intervals of the scores, as in the summary."
    if any(len(entry.rows) > 1 for entry in shown.entries):
        told += " Large markers: the templates that every run has; dots: single templates."
    if len(devices := shown.setting("device")) > 1:
        told += f" Seconds were taken on different devices ({', '.join(devices)})."
    note = element("p", told, class_="note")
    return several([legend(shown), element("div", *charts, class_="charts"), note])


def spread(shown: View) -> Markup:
    """Accuracy by template."""
    sentence = element("p", ranking(shown), class_="finding")
    if len(shown.templates) == 1:
        return sentence
    told = "Bars: 95% intervals. Lines join a decoder's templates: where they cross, ranks change."
    chart = figure(templates(shown), "Accuracy by template")
    note = element("p", told, class_="note")
    return several([sentence, legend(shown), element("div", chart, class_="charts"), note])


def order(shown: View) -> Markup:
    """A commit-order map for each run, all of one template."""
    template = next(
        (name for name in shown.templates if all(entry.row(name) for entry in shown.entries)),
        shown.templates[0],
    )
    told = (
        f"Template {template}: up to {SHOWN} samples, those of lowest index; below them the mean "
        "over all samples of the template. Colour is the forward that committed a position, as a "
        "share of the row's forwards; what is filled in behind an end of text has none."
    )
    maps = (figure(heat_map(entry, template), entry.label) for entry in shown.entries)
    charts = element("div", *maps, class_="charts")
    return several([element("p", told, class_="note"), colour_bar(), charts])


def browser(shown: View, limit: int) -> Markup:
    """The samples, which the script renders."""
    data = browser_data(shown, limit)
    kept, total = len(data["items"]), data["total"]
    told = f"All {total:,} prompts are in this page."
    most = max(entry.run.repeats for entry in shown.entries)
    if kept < total:
        told = (
            f"This page holds {kept:,} of {total:,} prompts: first those on which decoders differ, "
            "then those of lowest index."
        )
    if most > EACH:
        told += f" Of each prompt it holds the first {EACH} samples of a run."
    script = element("script", embedded(data), type="application/json", id="data")
    without = element("noscript", element("p", "Browsing needs JavaScript.", class_="warning"))
    frame = element("div", id="browser")
    return several([element("p", told, class_="note"), without, frame, script])
