"""How commands end when something is wrong."""

import errno
from typing import Any

import typer
from typer.core import TyperGroup

INTERRUPTED = 130


class Commands(TyperGroup):
    """The commands: bad input ends one in a line on stderr and exit code 2, not in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, FloatingPointError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # a closed pipe, as in `dlm generate | head`: typer ends quietly
            typer.echo(f"error: {one_line(error)}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror.lower()}: {str(error.filename)!r}"
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line) or type(error).__name__
