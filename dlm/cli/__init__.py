"""The command line: `dlm generate`, `dlm train` and the lists.

Nothing here imports torch or transformers before a command runs, so that `--help` is instant.
"""

from typing import Annotated

import typer

from dlm._version import __version__
from dlm.cli import frequencies, generate, lists, train
from dlm.cli.errors import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version and stop, if asked for it."""
    if wanted:
        typer.echo(f"dlm {__version__}")
        raise typer.Exit


@app.callback()
def dlm(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Decode masked-diffusion language models."""


app.command("generate")(generate.generate)
app.command("train")(train.train)
app.command("frequencies")(frequencies.frequencies)
app.command("decoders")(lists.decoders)
app.command("models")(lists.models)


def main() -> None:
    """The `dlm` command."""
    app(prog_name="dlm")
