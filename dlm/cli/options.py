"""Kinds of options: where `--help` lists them."""

from functools import partial

import typer

source = partial(typer.Option, rich_help_panel="Prompts and model")
decoding = partial(typer.Option, rich_help_panel="Decoding")
sampling = partial(typer.Option, rich_help_panel="Sampling")
data = partial(typer.Option, rich_help_panel="Data")
optimiser = partial(typer.Option, rich_help_panel="Optimiser")
network = partial(typer.Option, rich_help_panel="Network")
output = partial(typer.Option, rich_help_panel="Output")

JSON = output("--json", help="One JSON object a line, for machines.")
