"""Elements of HTML and SVG.

Text is escaped unless it is `Markup`, because names, prompts and model outputs may be hostile.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape

VOID = {"meta", "wbr"}
BREAKS = re.compile(r"(?<=[(,_/=\-])")  # places where a long name may be broken
SVG = "svg"


class Markup(str):
    """Text that is already HTML; anything added to it is escaped unless it is `Markup` too."""

    __slots__ = ()

    def __add__(self, other: str) -> "Markup":
        return Markup(f"{self}{text(other)}")


Content = str | int | float
"""The content of an element: markup, or values to be written as text."""


def text(content: Content) -> str:
    """Content as HTML: markup as it is, everything else escaped."""
    return content if isinstance(content, Markup) else escape(written(content))


def written(value: Content) -> str:
    """A value as text, with coordinates to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def element(name: str, /, *content: Content, **attributes: Content | None) -> Markup:
    """An element with its content and attributes; attributes that are None are left out.

    `class_` becomes class, and `stroke_width` becomes stroke-width.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(written(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{''.join(map(text, content))}</{name}>")


def several(parts: Iterable[Content], between: str = "") -> Markup:
    """Concatenate parts."""
    return Markup(between.join(map(text, parts)))


def breakable(name: str) -> Markup:
    """A name that may be broken between its words."""
    return several(BREAKS.split(name), element("wbr"))


def picture(width: float, height: float, label: str, *content: Content) -> Markup:
    """An SVG image that scales with the page, with a label for screen readers."""
    return element(
        SVG,
        *content,
        viewBox=f"0 0 {written(width)} {written(height)}",
        role="img",
        aria_label=label,
    )


def scrolling(label: str, *content: Content, **attributes: Content) -> Markup:
    """A box that scrolls sideways on its own, also by keyboard."""
    return element(
        "div", *content, class_="scroll", tabindex=0, role="region", aria_label=label, **attributes
    )


def definitions(pairs: Sequence[tuple[str, Content]], class_: str) -> Markup:
    """A list of terms with their meanings."""
    return element(
        "dl",
        *(element("div", element("dt", term), element("dd", told)) for term, told in pairs),
        class_=class_,
    )
