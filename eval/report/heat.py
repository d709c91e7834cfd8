"""Heat maps of when each position was committed, samples by positions."""

from collections.abc import Sequence
from itertools import zip_longest

from dlm.eval.report.axes import Axis, label, rule
from dlm.eval.report.html import Markup, element, picture, several
from dlm.eval.report.image import png
from dlm.eval.report.view import Entry
from dlm.eval.sample import Sample

SHOWN = 40  # samples in a map
WIDTH, LEFT, RIGHT, TOP = 460.0, 48.0, 450.0, 8.0
CELLS = 6.0, 18.0  # pixels of a row: with many rows, and at most
LEAST = 120.0  # least pixels of a map with few rows
MEAN = 16.0  # pixels of the row of means
GAP = 10.0
GROWN = "No order to show: positions move where blanks may become more (max_gen_length)."


def when(sample: Sample) -> list[float | None]:
    """When each position was committed, from 0 to 1: k / (forwards - 1) for forward pass k from 0.

    None where no forward pass committed: positions filled in after an end of text.
    """
    last = max(1, sample.forwards - 1)
    return [None if k < 0 else min(1.0, k / last) for k in sample.order]


def means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Means by position, over the rows that committed it."""
    columns = [[x for x in column if x is not None] for column in zip_longest(*rows)]
    return [sum(column) / len(column) if column else None for column in columns]


def heat_map(entry: Entry, template: str) -> Markup:
    """The first samples of a template and the mean over all of them; a note if there are none."""
    made = [each for each in entry.run.samples if each.template == template]
    samples = [each for each in made if each.order]
    if not samples:
        grown = any(each.forwards for each in made)
        return element("p", GROWN if grown else "No sample to show.")
    rows = [when(each) for each in samples]
    shown = samples[:SHOWN]
    width = max(map(len, rows))
    height = len(shown) * min(max(CELLS[0], LEAST / len(shown)), CELLS[1])
    middle = TOP + height + GAP
    bottom = middle + MEAN
    hatch = f"hatch{entry.number}"
    parts = [
        pattern(hatch),
        image(rows[:SHOWN], TOP, height, hatch),
        image([means(rows)], middle, MEAN, hatch),
        label(LEFT - 6, middle + MEAN - 3.5, "mean", "end"),
        sample_axis(shown, height),
        position_axis(width, bottom),
        *titles(shown, height / len(shown)),
    ]
    alt = f"Commit order of {entry.label}: {len(shown)} samples by {width} positions."
    return picture(WIDTH, bottom + 46, alt, *parts)


def pattern(name: str) -> Markup:
    """The hatching that shows through where nothing was committed."""
    stripe = element("path", d="M-1 5L5 -1M3 9L9 3", class_="stripe")
    tile = element("pattern", stripe, id=name, width=8, height=8, patternUnits="userSpaceOnUse")
    return element("defs", tile)


def image(rows: Sequence[Sequence[float | None]], top: float, height: float, hatch: str) -> Markup:
    """A row of cells, stretched to the width of the map."""
    place = {"x": LEFT, "y": top, "width": RIGHT - LEFT, "height": height}
    below = element("rect", fill=f"url(#{hatch})", class_="never", **place)
    cells = element("image", href=png(rows), preserveAspectRatio="none", class_="cells", **place)
    return several([below, cells])


def sample_axis(shown: Sequence[Sample], height: float) -> Markup:
    """Indices of the first, the middle and the last sample."""
    size = height / len(shown)
    places = sorted(
        {0, len(shown) // 2, len(shown) - 1} if len(shown) > 4 else {*range(len(shown))}
    )
    return several(
        label(LEFT - 6, TOP + (place + 0.5) * size + 4.5, str(shown[place].index), "end")
        for place in places
    )


def position_axis(width: int, bottom: float) -> Markup:
    """Positions of the generated span."""
    axis = Axis(0, width, LEFT, RIGHT)
    ticks = [value for value in axis.ticks if value == int(value)]
    marks = several(
        rule(axis.at(value), bottom, axis.at(value), bottom + 4, "axis")
        + label(axis.at(value), bottom + 18, f"{value:.0f}")
        for value in ticks
    )
    name = label((LEFT + RIGHT) / 2, bottom + 38, "position in the generated span", class_="name")
    return several([marks, name])


def titles(shown: Sequence[Sample], size: float) -> list[Markup]:
    """The tooltips, row by row."""
    place = {"x": LEFT, "width": RIGHT - LEFT, "height": size}
    return [
        element("rect", element("title", told(each)), y=TOP + number * size, class_="over", **place)
        for number, each in enumerate(shown)
    ]


def told(sample: Sample) -> str:
    """A sample as text."""
    verdict = "right" if sample.score == 1 else "wrong"
    again = f", sample {sample.repeat + 1}" if sample.repeat else ""
    committed = sum(k >= 0 for k in sample.order)
    return (
        f"{sample.id}{again}: {verdict}, {sample.forwards:,} forwards, "
        f"{committed:,} of {len(sample.order):,} positions committed"
    )


def colour_bar() -> Markup:
    """The legend of the colours."""
    steps = [number / 63 for number in range(64)]
    bar = element(
        "image", href=png([steps]), x=0, y=0, width=120, height=12, preserveAspectRatio="none"
    )
    scale = element("svg", bar, viewBox="0 0 120 12", class_="scale", aria_hidden="true")
    box = element("rect", width=24, height=12, fill="url(#hatchkey)", class_="never")
    key = element(
        "svg", pattern("hatchkey"), box, viewBox="0 0 24 12", class_="key", aria_hidden="true"
    )
    colours = element("span", "first forward ", scale, " last forward")
    return element("p", colours, element("span", key, " never"), class_="colours")
