"""Kinds of options: where `--help` lists them, and how their texts are read.

What a value may be is the library's to say. Here a text only becomes a number, with the library's
wording where it does not: the option, the rule, the value.
"""

from functools import partial
from typing import Any

import typer


def whole(text: str) -> int:
    """An int."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"must be an int, got {text!r}") from None


def count(text: str) -> int:
    """An int >= 1."""
    value = whole(text)
    if value < 1:
        raise typer.BadParameter(f"must be an int >= 1, got {text!r}")
    return value


def real(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number, got {text!r}") from None


WHOLE: dict[str, Any] = {"parser": whole, "metavar": "<int>"}
COUNT: dict[str, Any] = {"parser": count, "metavar": "<int>"}
REAL: dict[str, Any] = {"parser": real, "metavar": "<float>"}

source = partial(typer.Option, rich_help_panel="Prompts and model")
decoding = partial(typer.Option, rich_help_panel="Decoding")
sampling = partial(typer.Option, rich_help_panel="Sampling")
data = partial(typer.Option, rich_help_panel="Data")
optimiser = partial(typer.Option, rich_help_panel="Optimiser")
network = partial(typer.Option, rich_help_panel="Network")
run = partial(typer.Option, rich_help_panel="Run")
output = partial(typer.Option, rich_help_panel="Output")

JSON = output("--json", help="One JSON object a line, for machines.")
