"""The command line: decoding, chat, serving, training, benchmarks, lists, and plug-in commands.

Nothing here imports torch or transformers before a command runs, so that `--help` is instant.

Packages can add commands through the entry point group `dlm.commands`: each entry point is a
function that takes the typer app. `dlm eval` is added that way, because the evaluation is built on
top of this package.
"""

from importlib.metadata import entry_points
from typing import Annotated

import typer

from dlm._version import __version__
from dlm.cli import bench, chat, distill, frequencies, generate, lists, serve, train
from dlm.cli.errors import Commands

PLUGINS = "dlm.commands"

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if the option was given."""
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
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("train")(train.train)
app.command("frequencies")(frequencies.frequencies)
app.add_typer(distill.app, name="distill")
app.add_typer(bench.app, name="bench")
app.command("decoders")(lists.decoders)
app.command("models")(lists.models)


def main() -> None:
    """Run the `dlm` command."""
    for point in sorted(entry_points(group=PLUGINS), key=lambda each: each.name):
        point.load()(app)
    app(prog_name="dlm")
