"""How commands report errors and end."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

WRONG = 2
INTERRUPTED = 130


class Commands(TyperGroup):
    """The commands of `dlm`; bad input ends one with a line on stderr, without a traceback."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the options that precede the command."""
        with one_line_each():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Parse the options of the command and run it."""
        with one_line_each():
            return super().invoke(ctx)


@contextmanager
def one_line_each() -> Iterator[None]:
    """Print an error on one line and end the command: exit code 2 for bad input, 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(WRONG) from error


def message_of(error: Exception) -> str | None:
    """The error as one line for the user; None for a bug in `dlm`, and for what is no error."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return None  # `dlm` without arguments: its help has been printed
    if isinstance(error, typer.BadParameter.__mro__[1]):  # UsageError, which typer hides
        text = uncapitalized(error.format_message())  # type: ignore[attr-defined]
    elif isinstance(error, OSError):
        if error.errno == errno.EPIPE:
            return None  # as in `dlm generate | head`: typer ends quietly
        named = error.strerror is not None and error.filename is not None
        text = f"{error.strerror}: {str(error.filename)!r}" if named else str(error)
        text = uncapitalized(text)
    elif any(kind.__name__ == "TemplateError" for kind in type(error).__mro__):  # from jinja2
        text = f"messages must fit the model's chat template: {error}"
    elif isinstance(error, ValueError | FloatingPointError):
        text = str(error)
    else:
        return None
    lines = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return lines or type(error).__name__


def uncapitalized(text: str) -> str:
    """The text with a lower-case first letter, to follow "error: "."""
    return text[:1].lower() + text[1:]
