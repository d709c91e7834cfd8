"""The page that compares decoders: its tables and its figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlm.decoders import DECODERS
from dlm.plotting import pyplot
from dlm.training.cells import COUNTS, Point, Results, points, settings_of

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
FONT = 8  # points
TICKS = (1, 2, 3, 5, 10, 20, 50, 100)
MARKERS = "os^DvPX*<>d"
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "a budget, by what the model says": (
        "#0072B2",
        (
            *("low_confidence", "entropy", "margin", "pc_sampler", "dream", "schedule"),
            *("certainty_prior", "prophet"),
        ),
    ),
    "a budget, by position": ("#000000", ("left_to_right", "dilated")),
    "a budget, at random": ("#E69F00", ("random", "first_hitting", "ancestral")),
    "all above a threshold": (
        "#009E73",
        (
            *("threshold", "entropy_threshold", "local_leap", "hierarchical", "block_refinement"),
            *("mean_field", "multi_block", "d2f", "deferred_commitment", "adaptive_block"),
            "wedlm",
        ),
    ),
    "as many as a bound allows": ("#56B4E9", ("factor", "frechet", "entropy_bound")),
    "by earlier forwards": ("#CC79A7", ("credit", "klass", "mutual_stability")),
    "looks ahead": ("#999933", ("ssd", "lopa", "info_gain")),
    "takes tokens back": ("#D55E00", ("saber", "wino", "remdm")),
}
"""Colours that readers with any colour vision can tell apart (Okabe and Ito)."""


def table(results: Results) -> str:
    """All settings by all tasks, in Markdown."""
    totals = {line["task"]: line["total"] for line in results.lines.values()}
    head = ["decoder", "setting"]
    for task in COUNTS:
        head += [f"{task} ({totals.get(task, 0)}), %", "forwards", "tokens / forward"]
    rows = [head, ["---"] * 2 + ["--:"] * (len(head) - 2)]
    for decoder in DECODERS:
        for way, *found in zip(
            settings_of(decoder), *(points(results, task, decoder) for task in COUNTS), strict=True
        ):
            row = [f"`{decoder}`", way.label]
            for point in found:
                if point is None:
                    row += ["-"] * 3
                    continue
                spread = "" if point.spread is None else f" +- {point.spread:.1f}"
                row += [f"{point.solved:.1f}{spread}"]
                row += [f"{point.forwards:.1f}", f"{point.tokens_per_forward:.2f}"]
            rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def render(results: Results, page: Path, picture: Path) -> None:
    """Write the table into the page, and the figure.

    Raises:
        ValueError: matplotlib is missing, or the page has no markers.
    """
    plot = pyplot("--render")
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must have {BEGIN} and {END} once each, around its tables")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
    draw(plot, results, picture)


def draw(plot: Any, results: Results, picture: Path) -> None:
    """One panel per task, solved against forward passes; colour by family, marker by decoder."""
    plot.rcParams.update({"svg.hashsalt": "dlm", "svg.fonttype": "none", "font.size": FONT})
    figure, panels = plot.subplots(len(COUNTS), figsize=(10, 6.5 * len(COUNTS)), squeeze=False)
    drawn = []
    for axes, task in zip(panels[:, 0], COUNTS, strict=True):
        axes.set_xscale("log")
        axes.set(title=task, xlabel="forwards of a row (mean)", ylabel="solved, %")
        axes.set_xlim(0.9, 160)
        axes.set_xticks(TICKS, map(str, TICKS))
        axes.xaxis.set_minor_locator(plot.NullLocator())
        axes.grid(which="both", color="0.92")
        axes.set_axisbelow(True)
        best: dict[str, Point] = {}
        every: list[Point] = []
        for decoder in DECODERS:
            found = [point for point in points(results, task, decoder) if point is not None]
            if found:
                best[decoder] = max(found, key=lambda point: (point.solved, -point.forwards))
                every += found
                plot_decoder(axes, decoder, found)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.5), max(high, 10))  # low scores must look low
        drawn.append((axes, best, every))
    for family, (colour, _) in FAMILIES.items():
        panels[0, 0].plot([], [], color=colour, linewidth=4, label=family)
    panels[0, 0].plot([], [], "o", color="0.4", markerfacecolor="none", label="temperature 1")
    panels[0, 0].legend(loc="lower right")
    figure.tight_layout()
    for each in drawn:
        label(*each)
    figure.savefig(picture, metadata={"Date": None})
    plot.close(figure)


def style(decoder: str) -> dict[str, str]:
    """Colour and marker of a decoder."""
    for colour, members in FAMILIES.values():
        if decoder in members:
            return {"color": colour, "marker": MARKERS[members.index(decoder)]}
    return {"color": "0.3", "marker": "o"}


def plot_decoder(axes: Any, decoder: str, found: Sequence[Point]) -> None:
    """Plot a decoder's points; lines join those that differ only in a number or the budget."""
    lines: dict[Any, list[Point]] = {}
    for point in found:
        fixed = [(k, v if isinstance(v, str | bool) else 0) for k, v in point.way.options.items()]
        key = (point.way.temperature, point.way.share is None, *fixed)
        lines.setdefault(key, []).append(point)
    for line in lines.values():
        line.sort(key=lambda point: point.forwards)
        axes.errorbar(
            [point.forwards for point in line],
            [point.solved for point in line],
            yerr=[point.spread or 0.0 for point in line],
            **style(decoder),
            linewidth=0.8,
            elinewidth=0.5,
            alpha=0.8,
            markersize=5,
            markerfacecolor="none" if line[0].way.temperature else None,
        )


def label(axes: Any, best: Mapping[str, Point], every: Sequence[Point]) -> None:
    """Write every decoder's name near its best point, off other names and, if possible, points."""
    scale = axes.figure.dpi / 72  # pixels per typographic point
    dots = axes.transData.transform([(point.forwards, point.solved) for point in every])
    left, low, right, high = axes.bbox.extents
    taken: list[tuple[float, float]] = []  # centres, in pixels
    half = {name: (0.3 * FONT * len(name) * scale, 0.65 * FONT * scale) for name in best}
    placed: list[str] = []
    for decoder, point in sorted(best.items(), key=lambda item: item[1].forwards):
        x, y = axes.transData.transform((point.forwards, point.solved))
        wide, tall = half[decoder]
        free = []  # candidate centres clear of other names, with the points that they would hide
        for turn in range(5, 600):
            reach, angle = 0.6 * turn * scale, 2.4 * turn  # golden angle: an even spiral
            a, b = x + wide * math.cos(angle) + reach * math.cos(angle), y + reach * math.sin(angle)
            if not (left + wide < a < right - wide and low + tall < b < high - tall):
                continue
            others = zip(taken, (half[name] for name in placed), strict=True)
            if any(abs(a - c) < wide + w and abs(b - d) < tall + t for (c, d), (w, t) in others):
                continue
            hidden = sum(abs(a - c) < wide + 3 and abs(b - d) < tall + 3 for c, d in dots)
            free.append((hidden, turn, a, b))
        if free:
            _, _, a, b = min(free)
            taken.append((a, b))
            placed.append(decoder)
            axes.annotate(
                decoder,
                (point.forwards, point.solved),
                xytext=axes.transData.inverted().transform((a, b)),
                ha="center",
                va="center",
                color=style(decoder)["color"],
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.5", "shrinkB": 3},
            )
