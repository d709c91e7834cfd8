"""Axes of the charts: positions of values, and the values to label."""

import math
from dataclasses import dataclass
from itertools import count, takewhile

from dlm.eval.report.html import Content, Markup, element, several

FONT = 13  # pixels in a picture, about the same as on the page
LEAST_WIDE = 10  # ratio of the highest to the lowest value from which an axis is logarithmic


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel position of a value."""
        low, high, here = self.low, self.high, value
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        """Round values along the axis."""
        if self.log:
            return log_ticks(self.low, self.high)
        step = round_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        multiples = (number * step for number in count(first))
        return list(takewhile(lambda value: value <= self.high + step * 1e-9, multiples))


def round_step(span: float) -> float:
    """The step, 1, 2 or 5 times a power of ten, that divides a span into three to six or so."""
    power: float = 10.0 ** math.floor(math.log10(span))
    return next(part * power for part in (0.2, 0.5, 1.0, 2.0) if span <= 6 * part * power)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their doubles and fivefolds if there are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in found if low <= value <= high]
        if len(inside) >= 4:
            break
    return inside


def cost_axis(values: list[float], start: float, end: float) -> Axis:
    """An axis for costs: from zero, or logarithmic if they differ tenfold."""
    low, high = min(values), max(values)
    if low > 0 and high >= LEAST_WIDE * low:
        return Axis(low / 1.5, high * 1.5, start, end, log=True)
    return Axis(0.0, high * 1.12 or 1.0, start, end)


def share_axis(low: float, high: float, start: float, end: float) -> Axis:
    """An axis for shares, limited to the needed range and rounded to ticks."""
    step = max(round_step(max(high - low, 0.05)), 0.01)
    below = math.floor(low / step + 1e-9) * step
    above = math.ceil(high / step - 1e-9) * step
    return Axis(max(0.0, below), min(1.0, above), start, end)


def number(value: float) -> str:
    """The value of a tick as text."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"


def share(value: float) -> str:
    """The share of a tick in percent."""
    return f"{100 * value:.4g}%"


def label(x: float, y: float, content: Content, anchor: str = "middle", **more: Content) -> Markup:
    """A text in a picture."""
    return element("text", content, x=x, y=y, text_anchor=anchor, font_size=FONT, **more)


def rule(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def vertical_lines(axis: Axis, top: float, bottom: float, *, shares: bool = False) -> Markup:
    """The grid of a horizontal axis, with the values below it."""
    return several(
        rule(axis.at(value), top, axis.at(value), bottom, "grid")
        + label(axis.at(value), bottom + 18, share(value) if shares else number(value))
        for value in axis.ticks
    )


def horizontal_lines(axis: Axis, left: float, right: float) -> Markup:
    """The grid of a vertical axis of shares, with the values to the left."""
    return several(
        rule(left, axis.at(value), right, axis.at(value), "grid")
        + label(left - 6, axis.at(value) + 4.5, share(value), "end")
        for value in axis.ticks
    )
